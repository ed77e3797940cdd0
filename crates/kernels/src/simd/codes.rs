//! Codes of few bits as bf16, in plain Rust: the reference for the vector code, and where the
//! codes of a step lie.

use moekit_quant::ScaleFormat;

use super::{LANES, Simd};

/// A bf16 for each code of up to 5 bits.
#[derive(Debug)]
#[repr(align(64))]
pub(crate) struct Table(pub(crate) [u16; 32]);

/// E2M1, twice: the fifth bit says nothing.
pub(crate) static F4E2M1: Table = {
    let mut table = [0; 32];
    let magnitudes = [0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0];
    let mut code = 0;
    while code < 32 {
        table[code] = magnitudes[code % 8] | (code as u16 % 16 / 8) << 15;
        code += 1;
    }
    Table(table)
};

/// Nibbles that hold a value plus 8, twice.
pub(crate) static I4_OFFSET: Table = {
    let mut table = [0; 32];
    let mut code = 0;
    while code < 32 {
        table[code] = integer(code as i32 % 16 - 8);
        code += 1;
    }
    Table(table)
};

/// The integers from -16 to 15: what a nibble may be once its zero point has been taken away.
pub(crate) static I5_OFFSET: Table = {
    let mut table = [0; 32];
    let mut code = 0;
    while code < 32 {
        table[code] = integer(code as i32 - 16);
        code += 1;
    }
    Table(table)
};

/// The bf16 of an integer of at most 8 bits.
const fn integer(value: i32) -> u16 {
    let magnitude = value.unsigned_abs();
    if magnitude == 0 {
        return 0;
    }
    let exponent = magnitude.ilog2();
    let mantissa = (magnitude << (7 - exponent)) & 0x7f;
    let sign = (value < 0) as u32;
    (sign << 15 | (127 + exponent) << 7 | mantissa) as u16
}

/// The bf16 of an E4M3 code without its sign.
pub(super) const fn e4m3(code: u8) -> u16 {
    let (exponent, mantissa) = (code as u16 >> 3, code as u16 & 7);
    match (code, exponent) {
        (0x7f, _) => 0x7fc0,
        (0, _) => 0,
        (_, 0) => {
            let top = mantissa.ilog2() as u16;
            (127 - 9 + top) << 7 | (mantissa << (7 - top)) & 0x7f
        }
        _ => (exponent + 127 - 7) << 7 | mantissa << 4,
    }
}

/// Where the byte of an E4M3 code lies among those of two features: as unpacking bytes to words
/// takes them apart, four columns of the first 16 before four of the last 16.
pub(crate) const fn pair_place(column: usize, feature: usize) -> usize {
    column % 16 / 4 * 16 + column / 16 * 8 + column % 4 * 2 + feature % 2
}

/// Where a nibble lies among those of four features: its byte and its lowest bit. A 16-bit word
/// holds two columns, 16 apart, of two features, two apart, so that shifting words by multiples of
/// 4 bits gives vectors of pairs.
pub(crate) const fn nibble_place(column: usize, feature: usize) -> (usize, u32) {
    let byte = column % 16 * 4 + feature % 2 * 2 + feature % 4 / 2;
    (byte, column as u32 / 16 * 4)
}

/// The bf16 pairs of two features of E4M3, 64 bytes.
///
/// # Safety
///
/// The bytes can be read.
pub(super) unsafe fn e4m3_pairs(from: *const u8) -> [u32; LANES] {
    // SAFETY: the caller's promise.
    let codes = unsafe { from.cast::<[u8; 64]>().read() };
    let value = |code: u8| u32::from(e4m3(code & 0x7f)) | u32::from(code & 0x80) << 8;
    std::array::from_fn(|column| {
        let [even, odd] = [0, 1].map(|feature| value(codes[pair_place(column, feature)]));
        even | odd << 16
    })
}

/// The bf16 pairs of features `2 * HALF` and `2 * HALF + 1` of 64 bytes of nibbles, after adding
/// `above` to each.
///
/// # Safety
///
/// The bytes can be read.
pub(super) unsafe fn nibble_pairs<const HALF: usize>(
    from: *const u8,
    above: [u32; LANES],
    table: &Table,
) -> [u32; LANES] {
    // SAFETY: the caller's promise.
    let codes = unsafe { from.cast::<[u8; 64]>().read() };
    std::array::from_fn(|column| {
        let [even, odd] = [0, 1].map(|feature| {
            let (byte, shift) = nibble_place(column, 2 * HALF + feature);
            let code = u32::from(codes[byte] >> shift & 15) + (above[column] & 31);
            u32::from(table.0[code as usize % 32])
        });
        even | odd << 16
    })
}

/// What takes a nibble to `16 + value - zero point`, in all bytes of a word. The zero point is one
/// from -8 to 8.
pub(crate) fn above_nibble(zero_point: u8) -> u32 {
    let above = 8 - i32::from(zero_point.cast_signed());
    above.cast_unsigned().wrapping_mul(0x0101_0101)
}

/// [`above_nibble`] of 32 zero points.
///
/// # Safety
///
/// The bytes can be read.
pub(super) unsafe fn zero_points(from: *const u8) -> [u32; LANES] {
    // SAFETY: the caller's promise.
    let zero_points = unsafe { from.cast::<[u8; LANES]>().read() };
    zero_points.map(above_nibble)
}

/// The bf16 pairs of features `2 * HALF` and `2 * HALF + 1` of bytes that hold an integer plus 128.
///
/// # Safety
///
/// 128 bytes can be read.
pub(super) unsafe fn quad_pairs<const HALF: usize>(from: *const u8) -> [u32; LANES] {
    // SAFETY: the caller's promise.
    let quads = unsafe { from.cast::<[[u8; 4]; LANES]>().read() };
    quads.map(|quad| {
        let value = |i: usize| u32::from(integer(i32::from(quad[2 * HALF + i]) - 128));
        value(0) | value(1) << 16
    })
}

/// Some scales.
///
/// # Safety
///
/// Their bytes can be read.
pub(super) unsafe fn scales<const N: usize>(format: ScaleFormat, from: *const u8) -> [f32; N] {
    let size = format.bytes();
    // SAFETY: the caller's promise.
    let bytes = unsafe { std::slice::from_raw_parts(from, N * size) };
    std::array::from_fn(|i| format.decode(&bytes[i * size..]).unwrap_or(f32::NAN))
}

/// Products of quadruples of unsigned bytes with four signed ones, added to the integers that the
/// bits of `sums` are.
///
/// # Safety
///
/// 128 bytes can be read.
pub(super) unsafe fn add_quads(quads: *const u8, by: u32, sums: [f32; LANES]) -> [f32; LANES] {
    // SAFETY: the caller's promise.
    let quads = unsafe { quads.cast::<[[u8; 4]; LANES]>().read() };
    let by = by.to_le_bytes().map(|b| i32::from(b.cast_signed()));
    std::array::from_fn(|i| {
        let products = quads[i].iter().zip(by).map(|(w, x)| i32::from(*w) * x);
        let sum = products.fold(sums[i].to_bits().cast_signed(), i32::wrapping_add);
        f32::from_bits(sum.cast_unsigned())
    })
}

/// Pairs in the registers of an instruction set.
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn pairs<S: Simd>(pairs: [u32; LANES]) -> S::H {
    // SAFETY: the caller's promise; the array is as long as what is read.
    unsafe { S::load_pairs(pairs.as_ptr().cast()) }
}

/// The lanes of a register of `f32`.
///
/// # Safety
///
/// The machine has the instructions of `S`.
#[inline(always)]
pub(super) unsafe fn values<S: Simd>(values: S::F) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    // SAFETY: the caller's promise; the array is as long as what is written.
    unsafe { S::store(out.as_mut_ptr(), values) };
    out
}

#[cfg(test)]
mod tests {
    use half::bf16;
    use moekit_quant::{f4e2m1_values, f8e4m3_values};

    use super::*;
    use crate::Isa;
    use crate::simd::Op;

    fn bits(value: f32) -> u16 {
        bf16::from_f32(value).to_bits()
    }

    #[test]
    fn tables_hold_the_values_of_their_formats() {
        for code in 0..32 {
            assert_eq!(F4E2M1.0[code], bits(f4e2m1_values()[code % 16]));
            assert_eq!(I4_OFFSET.0[code], bits((code % 16) as f32 - 8.0));
            assert_eq!(I5_OFFSET.0[code], bits(code as f32 - 16.0));
        }
        for code in 0..127 {
            let value = f8e4m3_values()[usize::from(code)];
            assert_eq!(
                f32::from_bits(u32::from(e4m3(code)) << 16),
                value,
                "{code:#x}"
            );
        }
        assert!(bf16::from_bits(e4m3(0x7f)).is_nan());
    }

    #[test]
    fn places_are_distinct() {
        let mut seen = [false; 64];
        for (column, feature) in (0..32).flat_map(|c| [(c, 0), (c, 1)]) {
            let place = pair_place(column, feature);
            assert!(!std::mem::replace(&mut seen[place], true));
        }
        let mut seen = [false; 128];
        for (column, feature) in (0..32).flat_map(|c| (0..4).map(move |f| (c, f))) {
            let (byte, shift) = nibble_place(column, feature);
            assert!(!std::mem::replace(
                &mut seen[2 * byte + shift as usize / 4],
                true
            ));
        }
    }

    /// All that decodes, of 64 bytes and of the 128 bytes of which they are the first half.
    struct Decode<'a> {
        bytes: &'a [u8; 128],
        above: u32,
    }

    impl Op for Decode<'_> {
        type Output = Vec<u32>;

        #[inline(always)]
        unsafe fn run<S: Simd>(self) -> Vec<u32> {
            let mut out = Vec::new();
            let from = self.bytes.as_ptr();
            // SAFETY: the machine has the instructions; what is read is 128 bytes long at most, and
            // the words are 32.
            unsafe {
                let above = pairs::<S>([self.above * 0x0101_0101; LANES]);
                let mut put = |pairs: S::H| {
                    let one = |x: u32| S::widen(pairs).map(|v| values::<S>(v))[x as usize];
                    out.extend([0, 1].into_iter().flat_map(one).map(f32::to_bits));
                };
                put(S::load_e4m3(from));
                for table in [&F4E2M1, &I4_OFFSET] {
                    put(S::load_nibbles::<0>(from, table));
                    put(S::load_nibbles::<1>(from, table));
                }
                put(S::load_nibbles_above::<0>(from, above, &I5_OFFSET));
                put(S::load_nibbles_above::<1>(from, above, &I5_OFFSET));
                put(S::load_quads::<0>(from));
                put(S::load_quads::<1>(from));
                let mut words = [0_u32; LANES];
                S::keep_pairs(words.as_mut_ptr().cast(), S::load_zero_points(from));
                out.extend(words);
                for format in [
                    ScaleFormat::F32,
                    ScaleFormat::F16,
                    ScaleFormat::BF16,
                    ScaleFormat::F8E4M3,
                    ScaleFormat::F8E8M0,
                    ScaleFormat::I8,
                ] {
                    let scales = values::<S>(S::load_scales(format, from));
                    let bits = |v: f32| if v.is_nan() { f32::NAN } else { v }.to_bits();
                    out.extend(scales.map(bits));
                }
                let start = S::splat(f32::from_bits(0xffff_0000));
                let sums = S::add_quads(from, 0x80ff_7f03, start);
                out.extend(values::<S>(sums).map(f32::to_bits));
                out.extend(values::<S>(S::from_integers(sums)).map(f32::to_bits));
            }
            out
        }
    }

    #[test]
    fn every_instruction_set_decodes_every_code_alike() {
        for first in 0..=255_u8 {
            let bytes = std::array::from_fn(|i| first.wrapping_add((i * 37) as u8));
            let above = u32::from(first % 17);
            let decode = |isa: Isa| {
                let bytes = &bytes;
                // SAFETY: the instruction set is an available one.
                unsafe { isa.dispatch(Decode { bytes, above }) }
            };
            let expected = decode(Isa::Portable);
            for isa in Isa::available() {
                assert_eq!(decode(isa), expected, "{isa}");
            }
        }
    }
}
