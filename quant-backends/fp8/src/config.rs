use moekit_quant::{ModuleList, QuantError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::linear::Fp8Format;

/// When the scale of an activation is found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum ActivationScheme {
    /// From each token.
    #[default]
    Dynamic,
    /// When the checkpoint was made.
    Static,
}

/// The `quantization_config` of an FP8 checkpoint. Keys that are not listed play no part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Fp8 {
    /// Rows and columns of a block; without it, scales are per tensor or channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight_block_size: Option<[usize; 2]>,
    /// When the scale of an activation is found.
    pub activation_scheme: ActivationScheme,
    /// Number format of the weights, `e4m3`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fmt: Option<String>,
    /// Format of the scales of blocks: `float`, or `ue8m0` for powers of two, to which dynamic
    /// scales of activations are rounded then, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_fmt: Option<String>,
    /// Format of the experts, `fp8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_dtype: Option<String>,
    /// Format in which the experts are stored, `fp8`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_dtype: Option<String>,
    /// Modules that are not quantized: the start of a name up to a module's end (a regular
    /// expression), or its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules_to_not_convert: Option<Vec<String>>,
    /// Another name of the same list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored_layers: Option<Vec<String>>,
}

impl Fp8 {
    /// What all linears of a checkpoint have in common.
    pub(crate) fn format(&self) -> Result<Fp8Format, QuantError> {
        supported("fmt", &self.fmt, &["e4m3", "float8_e4m3fn"])?;
        supported("scale_fmt", &self.scale_fmt, &["float", "ue8m0"])?;
        supported("expert_dtype", &self.expert_dtype, &["fp8"])?;
        supported("store_dtype", &self.store_dtype, &["fp8"])?;
        if let Some(block) = self.weight_block_size {
            if block.contains(&0) {
                return Err(error(format!(
                    "weight_block_size is {block:?}, expected two positive numbers"
                )));
            }
            if self.activation_scheme == ActivationScheme::Static {
                return Err(error(
                    "activation_scheme is \"static\" with weight_block_size, expected \"dynamic\""
                        .to_owned(),
                ));
            }
        }
        let lists = [&self.modules_to_not_convert, &self.ignored_layers];
        Ok(Fp8Format {
            block: self.weight_block_size,
            activation_scheme: self.activation_scheme,
            power_of_two: self.scale_fmt.as_deref() == Some("ue8m0"),
            excluded: ModuleList::to_not_convert(lists.into_iter().flatten().flatten())?,
        })
    }
}

fn supported(key: &str, value: &Option<String>, known: &[&str]) -> Result<(), QuantError> {
    match value {
        Some(value) if !known.contains(&value.as_str()) => Err(QuantError::Unsupported {
            what: format!("{key} `{value}` of quant_method `fp8`"),
            supported: known.join(", "),
        }),
        _ => Ok(()),
    }
}

fn error(message: String) -> QuantError {
    QuantError::Config {
        method: "fp8".to_owned(),
        message,
    }
}
