//! The number formats of codes and scales, and what each code is worth.
//!
//! `half` and `microfloat` know the formats; the tables here are made from them once.

use std::fmt;
use std::sync::LazyLock;

use half::{bf16, f16};
use microfloat::{f4e2m1fn, f8e4m3fn, f8e8m0fnu};
use serde::{Deserialize, Serialize};

/// Largest finite value of [`CodeFormat::F8E4M3`].
pub const F8E4M3_MAX: f32 = 448.0;
/// Largest value of [`CodeFormat::F4E2M1`].
pub const F4E2M1_MAX: f32 = 6.0;

static F8E4M3: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| f8e4m3fn::from_bits(code as u8).to_f32()));
static F8E8M0: LazyLock<[f32; 256]> =
    LazyLock::new(|| std::array::from_fn(|code| f8e8m0fnu::from_bits(code as u8).to_f32()));
static F4E2M1: LazyLock<[f32; 16]> =
    LazyLock::new(|| std::array::from_fn(|code| f4e2m1fn::from_bits(code as u8).to_f32()));

/// The value of each E4M3 code (`float8_e4m3fn`: no infinities, `0x7f` and `0xff` are NaN).
///
/// [OCP 8-bit floating point, 1.0](https://www.opencompute.org/documents/ocp-8-bit-floating-point-specification-ofp8-revision-1-0-2023-12-01-pdf-1)
pub fn f8e4m3_values() -> &'static [f32; 256] {
    &F8E4M3
}

/// The value of each E8M0 code: `2^(code - 127)`, `0xff` is NaN.
///
/// [OCP microscaling formats, 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)
pub fn f8e8m0_values() -> &'static [f32; 256] {
    &F8E8M0
}

/// The value of each E2M1 code: `0, 0.5, 1, 1.5, 2, 3, 4, 6` and, from code 8 on, their negatives.
///
/// [OCP microscaling formats, 1.0](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)
pub fn f4e2m1_values() -> &'static [f32; 16] {
    &F4E2M1
}

/// Nearest E4M3 value, ties to the even code, saturating at [`F8E4M3_MAX`]; NaN stays NaN.
pub fn round_f8e4m3(value: f32) -> f32 {
    f8e4m3fn::from_f32(value.clamp(-F8E4M3_MAX, F8E4M3_MAX)).to_f32()
}

/// Nearest E2M1 value, ties to the even code, saturating at [`F4E2M1_MAX`]; NaN becomes zero,
/// because the format has none.
pub fn round_f4e2m1(value: f32) -> f32 {
    if value.is_nan() {
        return 0.0;
    }
    f4e2m1fn::from_f32(value.clamp(-F4E2M1_MAX, F4E2M1_MAX)).to_f32()
}

/// How a weight is stored. All formats are little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum CodeFormat {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit float, see [`f8e4m3_values`].
    F8E4M3,
    /// Two's complement byte.
    I8,
    /// A byte that holds the value plus 128.
    I8Offset,
    /// A nibble that holds the value plus 8; the low nibble of a byte is the even column.
    I4Offset,
    /// A nibble, see [`f4e2m1_values`]; the low nibble of a byte is the even column.
    F4E2M1,
}

impl CodeFormat {
    /// Bits of one code.
    pub const fn bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::BF16 => 16,
            Self::F8E4M3 | Self::I8 | Self::I8Offset => 8,
            Self::I4Offset | Self::F4E2M1 => 4,
        }
    }

    /// Whole bytes of one code; `None` for nibbles.
    pub const fn bytes(self) -> Option<usize> {
        match self.bits() {
            4 => None,
            bits => Some(bits / 8),
        }
    }

    /// Whether two codes share a byte.
    pub const fn is_nibble(self) -> bool {
        self.bits() == 4
    }

    /// Bytes of a row of `cols` codes without gaps.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self.bytes() {
            Some(bytes) => cols.saturating_mul(bytes),
            None => cols.div_ceil(2),
        }
    }

    /// The name in messages and listings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::F8E4M3 => "f8e4m3",
            Self::I8 => "i8",
            Self::I8Offset => "i8-offset",
            Self::I4Offset => "i4-offset",
            Self::F4E2M1 => "f4e2m1",
        }
    }

    /// The value of the code whose bytes `code` begins with (of a nibble: the low one); `None` if
    /// there are too few bytes.
    pub fn decode(self, code: &[u8]) -> Option<f32> {
        let byte = || code.first().copied();
        Some(match self {
            Self::F32 => f32::from_le_bytes(*code.first_chunk()?),
            Self::F16 => f16::from_le_bytes(*code.first_chunk()?).to_f32(),
            Self::BF16 => bf16::from_le_bytes(*code.first_chunk()?).to_f32(),
            Self::F8E4M3 => F8E4M3[usize::from(byte()?)],
            Self::I8 => f32::from(byte()?.cast_signed()),
            Self::I8Offset => f32::from(i16::from(byte()?) - 128),
            Self::I4Offset => f32::from(i16::from(byte()? & 15) - 8),
            Self::F4E2M1 => F4E2M1[usize::from(byte()? & 15)],
        })
    }
}

impl fmt::Display for CodeFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How a scale (or a zero point, [`ScaleFormat::I8`]) is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ScaleFormat {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// 8-bit float, see [`f8e4m3_values`].
    F8E4M3,
    /// Power of two, see [`f8e8m0_values`].
    F8E8M0,
    /// Two's complement byte: zero points.
    I8,
}

impl ScaleFormat {
    /// The format of codes that are stored alike; `None` for powers of two, which no code is.
    const fn code(self) -> Option<CodeFormat> {
        match self {
            Self::F32 => Some(CodeFormat::F32),
            Self::F16 => Some(CodeFormat::F16),
            Self::BF16 => Some(CodeFormat::BF16),
            Self::F8E4M3 => Some(CodeFormat::F8E4M3),
            Self::I8 => Some(CodeFormat::I8),
            Self::F8E8M0 => None,
        }
    }

    /// Bytes of one scale.
    pub const fn bytes(self) -> usize {
        match self.code() {
            Some(code) => code.bits() / 8,
            None => 1,
        }
    }

    /// The name in messages and listings.
    pub const fn name(self) -> &'static str {
        match self.code() {
            Some(code) => code.name(),
            None => "f8e8m0",
        }
    }

    /// The value of the scale whose bytes `code` begins with; `None` if there are too few bytes.
    pub fn decode(self, code: &[u8]) -> Option<f32> {
        match self.code() {
            Some(format) => format.decode(code),
            None => code.first().map(|&byte| F8E8M0[usize::from(byte)]),
        }
    }
}

impl fmt::Display for ScaleFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The formats by their definition: sign, exponent with bias, mantissa.
    fn float(code: u32, exponent_bits: u32, mantissa_bits: u32, bias: i32) -> f32 {
        let mantissa = code & ((1 << mantissa_bits) - 1);
        let exponent = (code >> mantissa_bits) & ((1 << exponent_bits) - 1);
        let sign = if code >> (exponent_bits + mantissa_bits) & 1 == 1 {
            -1.0
        } else {
            1.0
        };
        let fraction = f64::from(mantissa) / f64::from(1_u32 << mantissa_bits);
        let value = match exponent {
            0 => fraction * 2_f64.powi(1 - bias),
            e => (1.0 + fraction) * 2_f64.powi(e as i32 - bias),
        };
        (sign * value) as f32
    }

    #[test]
    fn every_f8e4m3_code() {
        for code in 0..=255_u8 {
            let got = f8e4m3_values()[usize::from(code)];
            if code & 0x7f == 0x7f {
                assert!(got.is_nan(), "{code:#x}");
            } else {
                let want = float(code.into(), 4, 3, 7);
                assert_eq!(got.to_bits(), want.to_bits(), "{code:#x}: {got} {want}");
            }
            let decoded = CodeFormat::F8E4M3.decode(&[code]).unwrap();
            assert_eq!(decoded.to_bits(), got.to_bits());
        }
        assert_eq!(f8e4m3_values()[0x7e], F8E4M3_MAX);
    }

    #[test]
    fn every_f8e8m0_code() {
        for code in 0..255_u8 {
            let want = 2_f64.powi(i32::from(code) - 127) as f32;
            assert_eq!(f8e8m0_values()[usize::from(code)], want, "{code:#x}");
            assert_eq!(ScaleFormat::F8E8M0.decode(&[code]), Some(want));
        }
        assert!(f8e8m0_values()[255].is_nan());
    }

    #[test]
    fn every_f4e2m1_code_in_either_nibble() {
        for byte in 0..=255_u8 {
            let want = float(u32::from(byte & 15), 2, 1, 1);
            assert_eq!(CodeFormat::F4E2M1.decode(&[byte]), Some(want), "{byte:#x}");
        }
        let magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        assert_eq!(f4e2m1_values()[..8], magnitudes);
        assert_eq!(f4e2m1_values()[8..], magnitudes.map(|m| -m));
    }

    #[test]
    fn every_integer_code() {
        for byte in 0..=255_u8 {
            let value = |v: i32| Some(v as f32);
            let unsigned = i32::from(byte);
            let signed = if byte < 128 { unsigned } else { unsigned - 256 };
            assert_eq!(CodeFormat::I8.decode(&[byte]), value(signed));
            assert_eq!(ScaleFormat::I8.decode(&[byte]), value(signed));
            assert_eq!(CodeFormat::I8Offset.decode(&[byte]), value(unsigned - 128));
            assert_eq!(
                CodeFormat::I4Offset.decode(&[byte]),
                value(unsigned % 16 - 8)
            );
        }
    }

    #[test]
    fn every_half_and_bfloat() {
        for code in 0..=u16::MAX {
            let got = CodeFormat::BF16.decode(&code.to_le_bytes()).unwrap();
            let want = f32::from_bits(u32::from(code) << 16);
            assert!(got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan());
            let got = CodeFormat::F16.decode(&code.to_le_bytes()).unwrap();
            match (code >> 10) & 31 {
                31 if code & 0x3ff != 0 => assert!(got.is_nan()),
                31 => assert!(got.is_infinite()),
                _ => assert_eq!(got, float(code.into(), 5, 10, 15)),
            }
        }
    }

    #[test]
    fn too_few_bytes_decode_to_nothing() {
        assert_eq!(CodeFormat::F32.decode(&[0; 3]), None);
        assert_eq!(CodeFormat::BF16.decode(&[0]), None);
        assert_eq!(CodeFormat::F4E2M1.decode(&[]), None);
        assert_eq!(ScaleFormat::F16.decode(&[0]), None);
    }

    /// Rounding finds the nearest value of the table, ties to the even code, for values on, beside
    /// and between all codes.
    #[test]
    fn rounding_is_to_nearest_even() {
        let check = |values: &[f32], round: fn(f32) -> f32| {
            for (even, pair) in values.windows(2).enumerate() {
                let middle = (pair[0] + pair[1]) / 2.0;
                let tie = if even % 2 == 0 { pair[0] } else { pair[1] };
                assert_eq!(round(middle), tie, "{middle}");
                assert_eq!(round(-middle), -tie, "{middle}");
                assert_eq!(round(middle.next_down()), pair[0]);
                assert_eq!(round(middle.next_up()), pair[1]);
                assert_eq!(round(pair[0]), pair[0]);
            }
        };
        check(&f8e4m3_values()[..0x7f], round_f8e4m3);
        check(&f4e2m1_values()[..8], round_f4e2m1);
        assert_eq!(round_f8e4m3(1e9), F8E4M3_MAX);
        assert_eq!(round_f8e4m3(-f32::INFINITY), -F8E4M3_MAX);
        assert!(round_f8e4m3(f32::NAN).is_nan());
        assert_eq!(round_f4e2m1(f32::INFINITY), F4E2M1_MAX);
        assert_eq!(round_f4e2m1(f32::NAN), 0.0);
    }
}
