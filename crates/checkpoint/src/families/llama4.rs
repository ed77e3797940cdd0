//! Llama 4: the sigmoid of the top-1 logit multiplies the expert's input; fused, transposed
//! experts; one shared expert; MoE in every n-th layer. [Llama 4
//! model card](https://github.com/meta-llama/llama-models/blob/main/models/llama4/MODEL_CARD.md).

use moekit_quant::{
    ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec,
    ScoringFunction, SharedExpertsSpec, TopKSelection,
};

use super::common::{per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["llama4", "llama4_text"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    let activation = config.activation()?;
    let step = config.size_or(&["interleave_moe_layer_step"], 1)?;
    let listed = config
        .value(&["moe_layers"])
        .map(|_| config.indices(&["moe_layers"]))
        .transpose()?;
    config.layers("feed_forward.router.weight", |index, layer| {
        let is_moe = match &listed {
            Some(layers) => layers.contains(&index),
            None => (index + 1).is_multiple_of(step),
        };
        if !is_moe {
            return Ok(None);
        }
        let moe = format!("{layer}.feed_forward");
        let mut router = RouterSpec::new(format!("{moe}.router.weight"));
        router.scoring = ScoringFunction::Sigmoid;
        router.selection = TopKSelection::TopKThenScores;
        router.weight_on_input = true;
        let experts = experts(config, format!("{moe}.experts"));
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        let shared = format!("{moe}.shared_expert");
        spec.shared = Some(SharedExpertsSpec::new(shared, MlpNames::proj(), sizes[3]));
        Ok(Some(spec))
    })
}

/// `[E, H, 2 * I]` and `[E, I, H]` as published in bf16; quantizers that know linears only write
/// one module per expert.
fn experts(config: &ModelConfig<'_>, module: String) -> ExpertLayout {
    if config.has_module(&format!("{module}.0")) {
        return per_expert(module, MlpNames::proj());
    }
    let tensor = |name: &str| FusedTensor::parameter(format!("{module}.{name}")).transposed();
    ExpertLayout::Fused {
        gate_up: tensor("gate_up_proj"),
        order: FusedOrder::Halves,
        down: tensor("down_proj"),
    }
}
