use moekit_quant::QuantError;

/// What `quant_algo` names.
const NAMES: [(&str, Algorithm); 7] = [
    ("FP8", Algorithm::Fp8),
    ("FP8_PER_CHANNEL_PER_TOKEN", Algorithm::Fp8PerChannel),
    ("FP8_PB_WO", Algorithm::Fp8Blocks),
    ("FP8_BLOCK_SCALES", Algorithm::Fp8Blocks),
    ("NVFP4", Algorithm::Nvfp4),
    ("W4A16_NVFP4", Algorithm::Nvfp4WeightOnly),
    ("MXFP8", Algorithm::Mxfp8),
];

/// The format of a linear.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// One scale per tensor, static activations.
    Fp8,
    /// One scale per output feature, activations per token.
    Fp8PerChannel,
    /// One scale per block, weights only.
    Fp8Blocks,
    /// Two levels of scales, for weights and activations.
    Nvfp4,
    /// Two levels of scales, weights only.
    Nvfp4WeightOnly,
    /// A power of two per group.
    Mxfp8,
}

impl Algorithm {
    /// The algorithm of a name, in any case.
    pub(crate) fn of(name: &str) -> Result<Self, QuantError> {
        let upper = name.to_uppercase();
        let known = NAMES.iter().find(|(known, _)| *known == upper);
        known.map(|(_, algorithm)| *algorithm).ok_or_else(|| {
            let names: Vec<_> = NAMES.iter().map(|(name, _)| *name).collect();
            QuantError::Unsupported {
                what: format!("quant_algo `{name}` of quant_method `modelopt`"),
                supported: format!("{}, MIXED_PRECISION", names.join(", ")),
            }
        })
    }

    /// Weights under one scale along the input features where the configuration does not tell.
    pub(crate) fn group_size(self) -> usize {
        match self {
            Self::Fp8 | Self::Fp8PerChannel => usize::MAX,
            Self::Fp8Blocks => 128,
            Self::Nvfp4 | Self::Nvfp4WeightOnly => 16,
            Self::Mxfp8 => 32,
        }
    }
}
