//! The formats that weights are published in.

use clap::ValueEnum;
use moekit::kernels::probe::Arithmetic;
use moekit::quant::{ActivationFormat, ActivationQuant, CodeFormat, ScaleFormat};

use super::ActivationDtype;

/// A format of weights, with the usual scales.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum WeightFormat {
    F32,
    Bf16,
    F16,
    /// E4M3 with an `f32` scale per 128 x 128 weights (DeepSeek-V3)
    #[value(alias = "fp8")]
    Fp8Block,
    /// E4M3 with an `f32` scale per output channel
    Fp8Channel,
    /// E4M3 with one `f32` scale
    Fp8Tensor,
    /// Symmetric bytes with an `f32` scale per output channel
    Int8,
    /// The same, activations quantized to bytes per token
    Int8Dynamic,
    /// Symmetric nibbles with a bf16 scale per 128 weights
    Int4,
    /// The same with zero points
    Int4Asym,
    /// E2M1 with a power of two per 32 weights
    Mxfp4,
    /// E2M1 with an E4M3 scale per 16 weights
    Nvfp4,
    /// E4M3 with a power of two per 32 weights
    Mxfp8,
}

/// Scales of a matrix.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scales {
    pub(super) format: ScaleFormat,
    /// Weights of a block along rows and columns; 0 is all of them.
    pub(super) block: [usize; 2],
    pub(super) zero_points: bool,
    /// Whether there is a second level.
    pub(super) global: bool,
}

impl WeightFormat {
    /// The name in flags and reports.
    pub(super) fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |v| v.get_name().to_owned())
    }

    pub(super) fn codes(self) -> CodeFormat {
        match self {
            Self::F32 => CodeFormat::F32,
            Self::Bf16 => CodeFormat::BF16,
            Self::F16 => CodeFormat::F16,
            Self::Fp8Block | Self::Fp8Channel | Self::Fp8Tensor | Self::Mxfp8 => CodeFormat::F8E4M3,
            Self::Int8 | Self::Int8Dynamic => CodeFormat::I8,
            Self::Int4 | Self::Int4Asym => CodeFormat::I4Offset,
            Self::Mxfp4 | Self::Nvfp4 => CodeFormat::F4E2M1,
        }
    }

    pub(super) fn scales(self) -> Option<Scales> {
        let (format, block) = match self {
            Self::F32 | Self::Bf16 | Self::F16 => return None,
            Self::Fp8Block => (ScaleFormat::F32, [128, 128]),
            Self::Fp8Channel | Self::Int8 | Self::Int8Dynamic => (ScaleFormat::F32, [1, 0]),
            Self::Fp8Tensor => (ScaleFormat::F32, [0, 0]),
            Self::Int4 | Self::Int4Asym => (ScaleFormat::BF16, [1, 128]),
            Self::Mxfp4 | Self::Mxfp8 => (ScaleFormat::F8E8M0, [1, 32]),
            Self::Nvfp4 => (ScaleFormat::F8E4M3, [1, 16]),
        };
        Some(Scales {
            format,
            block,
            zero_points: self == Self::Int4Asym,
            global: self == Self::Nvfp4,
        })
    }

    /// The root of the mean square of random codes.
    pub(super) fn magnitude(self) -> f32 {
        match self.codes() {
            CodeFormat::F8E4M3 => 100.0,
            CodeFormat::I8 => 74.0,
            CodeFormat::I4Offset => 4.6,
            CodeFormat::F4E2M1 => 2.9,
            _ => 1.0,
        }
    }

    pub(super) fn input_quant(self) -> Option<ActivationQuant> {
        let format = ActivationFormat::I8;
        (self == Self::Int8Dynamic).then_some(ActivationQuant::PerToken { format })
    }

    /// The arithmetic whose peak bounds the layer: bf16 activations and weights that are exact in
    /// bf16 are multiplied as such; `f32` of either is not rounded, and f16 has more digits.
    pub(super) fn arithmetic(self, act: ActivationDtype) -> Arithmetic {
        match (self, act) {
            (Self::Int8Dynamic, _) => Arithmetic::Int8,
            (Self::F32 | Self::F16, _) | (_, ActivationDtype::F32) => Arithmetic::F32,
            (_, ActivationDtype::Bf16) => Arithmetic::Bf16,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn magnitudes_are_those_of_all_codes() {
        for format in WeightFormat::value_variants() {
            let codes = format.codes();
            if codes.bits() > 8 {
                continue;
            }
            let values: Vec<f32> = (0..=255_u8)
                .filter_map(|code| codes.decode(&[code]))
                .filter(|value| value.is_finite())
                .collect();
            let square: f32 = values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32;
            let ratio = square.sqrt() / format.magnitude();
            assert!(
                (0.9..1.1).contains(&ratio),
                "{} {}",
                format.name(),
                square.sqrt()
            );
        }
    }
}
