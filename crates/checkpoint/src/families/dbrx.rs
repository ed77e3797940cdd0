//! DBRX: softmax over all experts, top-k, divided by their 1-norm; the experts' rows one below the
//! other in three tensors. [DBRX](https://github.com/databricks/dbrx).

use moekit_quant::{Activation, ExpertLayout, FusedTensor, MoeLayerSpec, MoeModelSpec, RouterSpec};

use super::common::{NUM_EXPERTS, TOP_K};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["dbrx"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let ffn = config.section("ffn_config")?;
    let sizes = [
        ffn.size(&NUM_EXPERTS)?,
        ffn.size(&TOP_K)?,
        config.size(&["d_model", "hidden_size"])?,
        ffn.size(&["ffn_hidden_size"])?,
    ];
    // `null` says that the weights stay as they are, nothing says the default.
    let renormalize = match ffn.value(&["moe_normalize_expert_weights"]) {
        None => !ffn.has_key("moe_normalize_expert_weights"),
        Some(norm) if norm.as_f64() == Some(1.0) => true,
        Some(norm) => {
            let what = format!("moe_normalize_expert_weights = {norm}");
            return Err(config.unsupported(what, "1 or null"));
        }
    };
    let Some(activation) = activation(&ffn) else {
        return Err(ffn.error("ffn_act_fn", "{\"name\": \"silu\"} or {\"name\": \"gelu\"}"));
    };
    config.layers("ffn.router.layer.weight", |index, layer| {
        let mut router = RouterSpec::new(format!("{layer}.ffn.router.layer.weight"));
        router.renormalize = renormalize;
        let tensor = |name: &str| FusedTensor::parameter(format!("{layer}.ffn.experts.mlp.{name}"));
        let experts = ExpertLayout::Stacked {
            gate: Some(tensor("w1")),
            up: tensor("v1"),
            down: tensor("w2").transposed(),
        };
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}

/// `ffn_act_fn`, SwiGLU without it; `None` if it is something else than a known name.
fn activation(ffn: &ModelConfig<'_>) -> Option<Activation> {
    let Some(function) = ffn.value(&["ffn_act_fn"]) else {
        return Some(Activation::SILU);
    };
    let function = function.as_object()?;
    // Further keys are arguments of the function.
    let name = function.get("name").filter(|_| function.len() == 1)?;
    Activation::from_hidden_act(name.as_str()?, None)
}
