use std::collections::BTreeMap;

use moekit_quant::QuantError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::scheme::Scheme;
use crate::targets::Targets;

/// The `quantization_config` of a compressed-tensors checkpoint. Keys that are not listed play no
/// part.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct CompressedTensors {
    /// Formats and the modules that have them.
    pub config_groups: BTreeMap<String, ConfigGroup>,
    /// Modules that are not quantized: names, or regular expressions after `re:` that match from
    /// the start of a name.
    pub ignore: Option<Vec<String>>,
    /// The storage format of groups that do not name their own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
    /// `compressed`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantization_status: Option<String>,
    /// Empty: sparse storage is not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sparsity_config: Option<Value>,
    /// Empty: transformed weights are not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transform_config: Option<Value>,
}

/// A format and the modules that have it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConfigGroup {
    /// Names, regular expressions after `re:`, or the class `Linear`.
    pub targets: Vec<String>,
    /// `None` if the weights are floats.
    pub weights: Option<QuantizationArgs>,
    /// `None` if the activations are floats.
    pub input_activations: Option<QuantizationArgs>,
    /// `None`: a linear whose output is quantized is not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_activations: Option<Value>,
    /// The storage format.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<String>,
}

/// How numbers are quantized.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct QuantizationArgs {
    /// Bits of a number.
    pub num_bits: u32,
    /// `int` or `float`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Whether there are no zero points.
    pub symmetric: bool,
    /// Numbers under one scale; -1 is the whole row.
    pub group_size: Option<i64>,
    /// `tensor`, `channel`, `group`, `block`, `token` or `tensor_group`; without it, `group_size`
    /// tells.
    pub strategy: Option<String>,
    /// Rows and columns under one scale.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_structure: Option<Block>,
    /// When the scales are found.
    pub dynamic: Dynamic,
    /// `weight` or nothing: stored reorderings are not read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actorder: Option<Value>,
    /// How scales are stored (`torch.uint8` for powers of two).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scale_dtype: Option<String>,
}

impl Default for QuantizationArgs {
    fn default() -> Self {
        Self {
            num_bits: 8,
            kind: "int".to_owned(),
            symmetric: true,
            group_size: None,
            strategy: None,
            block_structure: None,
            dynamic: Dynamic::Flag(false),
            actorder: None,
            scale_dtype: None,
        }
    }
}

/// Rows and columns of a block, in either spelling.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Block {
    /// `[128, 128]`
    Sizes([usize; 2]),
    /// `"128x128"`
    Text(String),
}

impl Block {
    pub(crate) fn sizes(&self) -> Option<[usize; 2]> {
        let sizes = match self {
            Self::Sizes(sizes) => *sizes,
            Self::Text(text) => {
                let (rows, cols) = text.split_once('x')?;
                [rows.parse().ok()?, cols.parse().ok()?]
            }
        };
        (!sizes.contains(&0)).then_some(sizes)
    }
}

/// When scales are found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
#[non_exhaustive]
pub enum Dynamic {
    /// With every token, or when the checkpoint was made.
    Flag(bool),
    /// `"local"`: those of groups with every token, the one above them when the checkpoint was
    /// made.
    Text(String),
}

impl CompressedTensors {
    /// Which linear has which format.
    pub(crate) fn targets(&self) -> Result<Targets, QuantError> {
        let status = self.quantization_status.as_deref().unwrap_or("compressed");
        if status != "compressed" {
            return Err(unsupported(
                format!("quantization_status `{status}`"),
                "compressed",
            ));
        }
        // An object without entries, or one that names the dense format.
        let sparse = self.sparsity_config.as_ref().and_then(Value::as_object);
        let sparse = sparse.and_then(|s| s.get("format")).and_then(Value::as_str);
        if let Some(format) = sparse.filter(|format| *format != "dense") {
            return Err(unsupported(format!("sparse format `{format}`"), "dense"));
        }
        let transforms = self
            .transform_config
            .as_ref()
            .and_then(|t| t.get("config_groups"));
        if transforms
            .and_then(Value::as_object)
            .is_some_and(|groups| !groups.is_empty())
        {
            return Err(unsupported(
                "transform_config",
                "weights without transforms",
            ));
        }
        let groups = self.config_groups.values().map(|group| {
            let scheme = Scheme::of(group, self.format.as_deref())?;
            Ok((scheme, group.targets.as_slice()))
        });
        Targets::new(
            groups.collect::<Result<Vec<_>, QuantError>>()?,
            self.ignore.as_deref().unwrap_or_default(),
        )
    }
}

/// The configuration that the descriptor shows: int4 in groups of 32, as Kimi-K2 has it.
pub(crate) fn example() -> CompressedTensors {
    let weights = QuantizationArgs {
        num_bits: 4,
        group_size: Some(32),
        strategy: Some("group".to_owned()),
        ..QuantizationArgs::default()
    };
    let group = ConfigGroup {
        targets: vec!["Linear".to_owned()],
        weights: Some(weights),
        ..ConfigGroup::default()
    };
    let ignore = ["lm_head", "re:.*self_attn.*", "re:.*mlp.gate$"];
    CompressedTensors {
        config_groups: [("group_0".to_owned(), group)].into(),
        ignore: Some(ignore.map(str::to_owned).into()),
        format: Some("pack-quantized".to_owned()),
        ..CompressedTensors::default()
    }
}

pub(crate) fn unsupported(what: impl Into<String>, supported: &str) -> QuantError {
    QuantError::Unsupported {
        what: format!("{} of quant_method `compressed-tensors`", what.into()),
        supported: supported.to_owned(),
    }
}

pub(crate) fn error(message: String) -> QuantError {
    QuantError::Config {
        method: "compressed-tensors".to_owned(),
        message,
    }
}
