use serde::{Deserialize, Serialize};

/// The number format of a quantized activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ActivationFormat {
    /// 8-bit float.
    F8E4M3,
    /// Symmetric 8-bit integer.
    I8,
    /// 4-bit float.
    F4E2M1,
}

/// How a checkpoint means the input of a linear to be quantized.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub enum ActivationQuant {
    /// One scale, measured when the checkpoint was made: `q = round(x / scale)`.
    Static {
        /// Format of `q`.
        format: ActivationFormat,
        /// The multiplier that restores `x`.
        scale: f32,
    },
    /// One scale per token, from the token's own largest magnitude.
    PerToken {
        /// Format of `q`.
        format: ActivationFormat,
    },
    /// One scale per `group_size` consecutive features of a token; the last group may be partial.
    PerGroup {
        /// Format of `q`.
        format: ActivationFormat,
        /// Features of a group.
        group_size: usize,
    },
    /// One power of two per 32 features (OCP microscaling).
    Mx {
        /// Format of `q`.
        format: ActivationFormat,
    },
    /// E2M1 with an E4M3 scale per 16 features, under one static second-level scale.
    Nvfp4 {
        /// The second level: the multiplier that restores `x` from `q` times its E4M3 scale.
        scale: f32,
    },
}
