use std::collections::BTreeMap;

use moekit_quant::MoeModelSpec;

use crate::families::BUILTIN;
use crate::{CheckpointError, ModelConfig};

/// Names closer than this (Jaro-Winkler, 1 is equal) are worth suggesting.
const SIMILAR: f64 = 0.75;

/// A model family: what its `config.json` means. Register it with
/// [`register_family!`](crate::register_family).
#[derive(Clone, Copy, Debug)]
pub struct Family {
    /// The values of `model_type` that it reads.
    pub model_types: &'static [&'static str],
    /// From the configuration to the MoE layers.
    pub spec: fn(&ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError>,
    /// The crate that holds it.
    pub crate_name: &'static str,
}

inventory::collect!(Family);

impl Family {
    pub(crate) const fn builtin(
        model_types: &'static [&'static str],
        spec: fn(&ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError>,
    ) -> Self {
        Self {
            model_types,
            spec,
            crate_name: env!("CARGO_PKG_NAME"),
        }
    }
}

/// The model types that this program reads, in order.
///
/// # Errors
///
/// If two families read one of them.
pub fn model_types() -> Result<Vec<&'static str>, CheckpointError> {
    Ok(known()?.into_keys().collect())
}

pub(crate) fn known() -> Result<BTreeMap<&'static str, &'static Family>, CheckpointError> {
    by_model_type(BUILTIN.iter().chain(inventory::iter::<Family>))
}

fn by_model_type(
    families: impl Iterator<Item = &'static Family>,
) -> Result<BTreeMap<&'static str, &'static Family>, CheckpointError> {
    let mut known = BTreeMap::new();
    for family in families {
        for &model_type in family.model_types {
            if let Some(other) = known.insert(model_type, family) {
                // The order in which a linker collects families is not ours to choose.
                let mut names = [other.crate_name, family.crate_name];
                names.sort_unstable();
                return Err(CheckpointError::DuplicateFamily {
                    model_type: model_type.to_owned(),
                    first: names[0].to_owned(),
                    second: names[1].to_owned(),
                });
            }
        }
    }
    Ok(known)
}

pub(crate) fn unknown(
    model_type: &str,
    known: &BTreeMap<&'static str, &'static Family>,
) -> CheckpointError {
    let similarity = |name: &str| strsim::jaro_winkler(name, model_type);
    let nearest = known
        .keys()
        .filter(|name| similarity(name) >= SIMILAR)
        .max_by(|a, b| similarity(a).total_cmp(&similarity(b)));
    CheckpointError::UnknownFamily {
        model_type: model_type.to_owned(),
        nearest: nearest.map(|&name| name.to_owned()),
        known: known.keys().map(|&name| name.to_owned()).collect(),
    }
}

/// Registers a model family: the model types and the function that reads their configuration.
///
/// ```
/// use moekit_checkpoint::{CheckpointError, ModelConfig, register_family};
/// use moekit_quant::{ExpertLayout, MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec};
/// use serde_json::json;
///
/// fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
///     let sizes = [
///         config.size(&["num_experts"])?,
///         config.size(&["num_experts_per_tok"])?,
///         config.size(&["hidden_size"])?,
///         config.size(&["moe_intermediate_size"])?,
///     ];
///     config.layers("moe.router.weight", |index, layer| {
///         let experts = ExpertLayout::PerExpert {
///             module: format!("{layer}.moe.experts"),
///             names: MlpNames::proj(),
///             bias: false,
///         };
///         let router = RouterSpec::new(format!("{layer}.moe.router.weight"));
///         Ok(Some(MoeLayerSpec::new(index, sizes, experts, router)))
///     })
/// }
///
/// register_family!(["my_moe"], spec);
///
/// let config = json!({
///     "model_type": "my_moe", "num_hidden_layers": 1, "hidden_size": 8,
///     "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
/// });
/// let model = ModelConfig::new(&config, []).model()?;
/// assert_eq!(model.layers[0].num_experts, 4);
/// # Ok::<(), CheckpointError>(())
/// ```
#[macro_export]
macro_rules! register_family {
    ([$($model_type:literal),+ $(,)?], $spec:expr $(,)?) => {
        $crate::__private::inventory::submit! {
            $crate::Family {
                model_types: &[$($model_type),+],
                spec: $spec,
                crate_name: env!("CARGO_PKG_NAME"),
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn family(crate_name: &'static str) -> Family {
        Family {
            model_types: &["one", "two"],
            spec: |config| config.layers("gate", |_, _| Ok(None)),
            crate_name,
        }
    }

    static ONE: Family = family("one");
    static OTHER: Family = family("another");

    #[test]
    fn two_families_of_one_model_type_are_both_named() {
        for pair in [[&ONE, &OTHER], [&OTHER, &ONE]] {
            let error = by_model_type(pair.into_iter()).unwrap_err().to_string();
            let expected = "two families read model_type `one`: one from another, one from one";
            assert_eq!(error, expected);
        }
        assert_eq!(by_model_type([&ONE].into_iter()).unwrap().len(), 2);
    }
}
