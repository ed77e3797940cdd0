use std::collections::BTreeMap;

use moekit_quant::{ModuleList, ModulePattern, QuantError};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algorithm::Algorithm;

/// The format of one module in `quantized_layers`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LayerAlgorithm {
    /// As in [`ModelOpt`]; `None` is not quantized.
    pub quant_algo: Option<String>,
    /// Weights under one scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
}

/// What a configuration group says of activations, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ConfigGroup {
    /// `None` if activations are not quantized.
    pub input_activations: Option<BTreeMap<String, serde_json::Value>>,
}

/// The `quantization_config` of ModelOpt, or the `quantization` of its `hf_quant_config.json`. Keys
/// that are not listed play no part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct ModelOpt {
    /// `FP8`, `FP8_PER_CHANNEL_PER_TOKEN`, `FP8_PB_WO`, `NVFP4`, `W4A16_NVFP4`, `MXFP8` or
    /// `MIXED_PRECISION`, in any case.
    pub quant_algo: Option<String>,
    /// Weights under one scale; without it, that of the algorithm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_size: Option<usize>,
    /// Modules that are not quantized: names, of a module or one that holds it, or patterns with
    /// `*` and `?`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignore: Option<Vec<String>>,
    /// The same list in `hf_quant_config.json`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exclude_modules: Option<Vec<String>>,
    /// The format of each module of `MIXED_PRECISION`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quantized_layers: Option<BTreeMap<String, LayerAlgorithm>>,
    /// Groups of modules; all without `input_activations` make `NVFP4` weight-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config_groups: Option<BTreeMap<String, ConfigGroup>>,
}

/// The format of every linear of a checkpoint.
#[derive(Debug)]
pub(crate) enum Plan {
    /// All but the excluded ones.
    Same {
        algorithm: Algorithm,
        group_size: usize,
        excluded: ModuleList,
    },
    /// By module; modules that hold a linear speak for it.
    Mixed(BTreeMap<String, Option<(Algorithm, usize)>>),
}

impl ModelOpt {
    pub(crate) fn plan(&self) -> Result<Plan, QuantError> {
        let Some(name) = &self.quant_algo else {
            return Err(error(
                "quant_algo is missing: it names the format".to_owned(),
            ));
        };
        if name.eq_ignore_ascii_case("MIXED_PRECISION") {
            return self.mixed();
        }
        let mut algorithm = Algorithm::of(name)?;
        if algorithm == Algorithm::Nvfp4 && self.is_weight_only() {
            algorithm = Algorithm::Nvfp4WeightOnly;
        }
        Ok(Plan::Same {
            algorithm,
            group_size: group_size(algorithm, self.group_size)?,
            excluded: self.excluded()?,
        })
    }

    fn mixed(&self) -> Result<Plan, QuantError> {
        let layers = self.quantized_layers.iter().flatten();
        let formats: BTreeMap<_, _> = layers
            .map(|(module, layer)| {
                let algorithm = layer.quant_algo.as_deref().map(Algorithm::of).transpose()?;
                let format = algorithm.map(|algorithm| {
                    Ok::<_, QuantError>((algorithm, group_size(algorithm, layer.group_size)?))
                });
                Ok((module.clone(), format.transpose()?))
            })
            .collect::<Result<_, QuantError>>()?;
        match formats.is_empty() {
            true => Err(error(
                "quantized_layers is empty: MIXED_PRECISION names the format of each module there"
                    .to_owned(),
            )),
            false => Ok(Plan::Mixed(formats)),
        }
    }

    fn is_weight_only(&self) -> bool {
        let mut groups = self.config_groups.iter().flatten().peekable();
        groups.peek().is_some() && groups.all(|(_, group)| group.input_activations.is_none())
    }

    fn excluded(&self) -> Result<ModuleList, QuantError> {
        let entries = [&self.ignore, &self.exclude_modules];
        let entries = entries.into_iter().flatten().flatten();
        // What holds a linear is excluded with all that it holds.
        ModuleList::new(entries.map(|entry| ModulePattern::glob_within(entry)))
    }
}

fn group_size(algorithm: Algorithm, given: Option<usize>) -> Result<usize, QuantError> {
    match given {
        Some(0) => Err(error(
            "group_size is 0, expected a positive number".to_owned(),
        )),
        // Algorithms without groups carry the key as well.
        Some(size) if algorithm.group_size() != usize::MAX => Ok(size),
        _ => Ok(algorithm.group_size()),
    }
}

fn error(message: String) -> QuantError {
    QuantError::Config {
        method: "modelopt".to_owned(),
        message,
    }
}
