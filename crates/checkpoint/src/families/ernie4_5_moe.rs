//! ERNIE-4.5: softmax scores, biased choice, renormalized; shared experts; MoE in a range of
//! layers. [ERNIE 4.5 Technical Report](https://yiyan.baidu.com/blog/publication/ERNIE_Technical_Report.pdf).

use moekit_quant::{MoeLayerSpec, MoeModelSpec, RouterSpec};

use super::common::{per_expert_biased, shared_experts, sizes};
use crate::{CheckpointError, Family, ModelConfig};

/// The original code divides a token's weights by their sum, but by no less than `moe_norm_min`
/// (1e-12 where published). Up to here it differs from the sum only for tokens whose experts score
/// next to nothing.
const MAX_NORM_MIN: f32 = 1e-6;

pub(super) const FAMILY: Family = Family::builtin(&["ernie4_5_moe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    let gate = config.text_or(&["moe_gate_act"], "softmax")?;
    if gate != "softmax" {
        return Err(config.unsupported(format!("moe_gate_act `{gate}`"), "softmax"));
    }
    if config.float(&["moe_norm_min"])?.unwrap_or(0.0) > MAX_NORM_MIN {
        return Err(config.error("moe_norm_min", &format!("at most {MAX_NORM_MIN:e}")));
    }
    let biased = config.flag_or(&["moe_use_aux_free"], true)?;
    let num_shared = config.count(&["moe_num_shared_experts"])?.unwrap_or(2);
    let shared_bias = config.flag_or(&["use_bias"], false)?;
    let first = config.count(&["moe_layer_start_index"])?.unwrap_or(1);
    // -1 is the last layer.
    let last = match config.value(&["moe_layer_end_index"]) {
        Some(index) if index.as_i64() != Some(-1) => config.count(&["moe_layer_end_index"])?,
        _ => None,
    };
    let last = last.unwrap_or(usize::MAX);
    let step = config.size_or(&["moe_layer_interval"], 1)?;
    config.layers("mlp.gate.weight", |index, layer| {
        if !(first..=last).contains(&index) || !(index + 1).is_multiple_of(step) {
            return Ok(None);
        }
        let mut router = RouterSpec::new(format!("{layer}.mlp.gate.weight"));
        let bias = format!("{layer}.mlp.moe_statics.e_score_correction_bias");
        router.correction_bias = biased.then_some(bias);
        router.renormalize = true;
        let experts = per_expert_biased(config, "use_bias", format!("{layer}.mlp.experts"))?;
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        spec.shared = shared_experts(layer, num_shared, sizes[3]);
        if let Some(shared) = &mut spec.shared {
            shared.bias = shared_bias;
        }
        Ok(Some(spec))
    })
}
