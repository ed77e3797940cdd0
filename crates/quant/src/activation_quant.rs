use serde::{Deserialize, Serialize};

use crate::{F4E2M1_MAX, F8E4M3_MAX, round_f4e2m1, round_f8e4m3};

/// Features under one scale of [`ActivationQuant::Mx`].
const MX_GROUP: usize = 32;
/// Features under one scale of [`ActivationQuant::Nvfp4`].
const NVFP4_GROUP: usize = 16;

/// The number format of a quantized activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ActivationFormat {
    /// 8-bit float.
    F8E4M3,
    /// Symmetric 8-bit integer.
    I8,
    /// 4-bit float.
    F4E2M1,
}

impl ActivationFormat {
    /// Nearest value of the format, saturating.
    fn round(self, value: f32) -> f32 {
        match self {
            Self::F8E4M3 => round_f8e4m3(value),
            Self::I8 => value.clamp(-128.0, 127.0).round_ties_even(),
            Self::F4E2M1 => round_f4e2m1(value),
        }
    }

    /// The scale under which the largest magnitude `amax` just fits. That of integers is half of
    /// the range `-128..=127`, as compressed-tensors has it.
    fn scale(self, amax: f32) -> f32 {
        match self {
            Self::F8E4M3 => amax / F8E4M3_MAX,
            Self::I8 => amax / 127.5,
            Self::F4E2M1 => amax / F4E2M1_MAX,
        }
    }
}

/// How a checkpoint means the input of a linear to be quantized.
///
/// ```
/// use moekit_quant::{ActivationFormat, ActivationQuant};
///
/// let mut row = [0.1, 1.0, -448.0];
/// ActivationQuant::PerToken { format: ActivationFormat::F8E4M3 }.apply(&mut row);
/// assert_eq!(row, [0.1015625, 1.0, -448.0]);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
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
        /// Whether a scale is rounded up to a power of two.
        power_of_two: bool,
    },
    /// One power of two per 32 features ([OCP microscaling](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)).
    /// An 8-bit group's scale is the least under which nothing saturates; a 4-bit group's is that
    /// of compressed-tensors, which lets magnitudes from 6 to 7 times the scale saturate at 6.
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

impl ActivationQuant {
    /// Quantizes and dequantizes the input of a linear, one token at a time: the reference that
    /// kernels are held to.
    ///
    /// # Arguments
    ///
    /// - `row` - `[in]`, one token.
    pub fn apply(self, row: &mut [f32]) {
        match self {
            Self::Static { format, scale } => restore(row, format, scale),
            Self::PerToken { format } => restore(row, format, format.scale(amax(row))),
            Self::PerGroup {
                format,
                group_size,
                power_of_two,
            } => {
                for group in row.chunks_mut(group_size.max(1)) {
                    let scale = format.scale(amax(group));
                    let scale = if power_of_two {
                        power_of_two_above(scale)
                    } else {
                        scale
                    };
                    restore(group, format, scale);
                }
            }
            Self::Mx { format } => {
                for group in row.chunks_mut(MX_GROUP) {
                    let scale = match format {
                        ActivationFormat::F4E2M1 => mx_fp4_scale(amax(group)),
                        format => power_of_two_above(format.scale(amax(group))),
                    };
                    restore(group, format, scale);
                }
            }
            Self::Nvfp4 { scale } => {
                for group in row.chunks_mut(NVFP4_GROUP) {
                    let group_scale = round_f8e4m3(amax(group) / F4E2M1_MAX / scale);
                    restore(group, ActivationFormat::F4E2M1, group_scale * scale);
                }
            }
        }
    }
}

fn amax(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |amax, v| amax.max(v.abs()))
}

/// A scale of 0 belongs to values that are 0, or too small for the scales of their format.
fn restore(values: &mut [f32], format: ActivationFormat, scale: f32) {
    for value in values {
        *value = match scale {
            0.0 => 0.0,
            scale => format.round(*value / scale) * scale,
        };
    }
}

/// The least power of two that is not below a scale, within those of E8M0.
fn power_of_two_above(scale: f32) -> f32 {
    let bits = scale.to_bits();
    let exponent = (bits >> 23) + u32::from(bits & 0x7f_ffff != 0);
    match scale {
        0.0 => 0.0,
        _ => f32::from_bits(exponent.clamp(1, 254) << 23),
    }
}

/// compressed-tensors' scale of an MXFP4 group: the exponent of `amax` after rounding it to one bit
/// of mantissa, less that of the format's largest value.
fn mx_fp4_scale(amax: f32) -> f32 {
    let exponent = (amax.to_bits() + (1 << 21)) >> 23;
    match amax {
        0.0 => 0.0,
        _ => f32::from_bits(exponent.saturating_sub(2).clamp(1, 254) << 23),
    }
}
