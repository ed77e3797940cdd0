//! Qwen2-MoE, Qwen3-MoE and Qwen3-Next: softmax over all experts, top-k, renormalized if
//! `norm_topk_prob`; some with a shared expert behind a sigmoid gate. [Qwen3 Technical
//! Report](https://arxiv.org/abs/2505.09388).
//!
//! Qwen3-Next's block is published with one module per expert, its successors' with the experts
//! fused, that of Qwen3-VL fused and transposed.

use moekit_quant::{
    ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec,
    SharedExpertsSpec,
};

use super::common::{per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(
    &[
        "qwen2_moe",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe",
        "qwen3_vl_moe_text",
        "qwen3_5_moe",
        "qwen3_5_moe_text",
    ],
    spec,
);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    // The later ones renormalize unless told otherwise.
    let older = ["qwen2_moe", "qwen3_moe"].contains(&own_model_type(config));
    let renormalize = config.flag_or(&["norm_topk_prob"], !older)?;
    let shared_width = config
        .count(&["shared_expert_intermediate_size"])?
        .unwrap_or(0);
    let step = config.size_or(&["decoder_sparse_step"], 1)?;
    let dense = config.indices(&["mlp_only_layers"])?;
    config.layers("mlp.gate.weight", |index, layer| {
        if dense.contains(&index) || !(index + 1).is_multiple_of(step) {
            return Ok(None);
        }
        let moe = format!("{layer}.mlp");
        let mut router = RouterSpec::new(format!("{moe}.gate.weight"));
        router.renormalize = renormalize;
        let mut spec = MoeLayerSpec::new(index, sizes, experts(config, &moe), router);
        spec.activation = activation;
        spec.shared = (shared_width > 0).then(|| {
            let module = format!("{moe}.shared_expert");
            let mut shared = SharedExpertsSpec::new(module, MlpNames::proj(), shared_width);
            shared.gate = Some(format!("{moe}.shared_expert_gate.weight"));
            shared
        });
        Ok(Some(spec))
    })
}

/// The model type that chose this family, whatever the wrapper around the text model is called.
fn own_model_type<'a>(config: &ModelConfig<'a>) -> &'a str {
    let mut known = config.model_types();
    known
        .find(|name| FAMILY.model_types.contains(name))
        .unwrap_or_default()
}

fn experts(config: &ModelConfig<'_>, moe: &str) -> ExpertLayout {
    let fused = format!("{moe}.experts.gate_up_proj");
    if !config.has_tensor(&fused) {
        return per_expert(format!("{moe}.experts"), MlpNames::proj());
    }
    let transposed = own_model_type(config).starts_with("qwen3_vl_moe");
    let tensor = |name: String| match transposed {
        true => FusedTensor::parameter(name).transposed(),
        false => FusedTensor::parameter(name),
    };
    ExpertLayout::Fused {
        gate_up: tensor(fused),
        order: FusedOrder::Halves,
        down: tensor(format!("{moe}.experts.down_proj")),
    }
}
