//! DeepSeek-V2: softmax scores, the best groups by their best expert, no renormalization. [DeepSeek-V2](https://arxiv.org/abs/2405.04434).

use moekit_quant::{GroupScore, MoeLayerSpec, MoeModelSpec, RouterSpec};

use super::common::{expect_scoring, groups, per_expert_biased, shared_experts, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["deepseek_v2"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    if config.flag_or(&["norm_topk_prob"], false)? {
        // The original code then drops the scaling factor, its ports do not.
        return Err(config.unsupported("norm_topk_prob = true", "norm_topk_prob = false"));
    }
    let groups = match config.text_or(&["topk_method"], "greedy")? {
        "greedy" => None,
        "group_limited_greedy" => groups(config, GroupScore::Max, [1, 1])?,
        other => {
            let what = format!("topk_method `{other}`");
            return Err(config.unsupported(what, "greedy, group_limited_greedy"));
        }
    };
    expect_scoring(config, "softmax")?;
    let scaling = config.float(&["routed_scaling_factor"])?.unwrap_or(1.0);
    let num_shared = config.count(&["n_shared_experts"])?.unwrap_or(0);
    let bias = config.flag_or(&["mlp_bias"], false)?;
    let first = config.count(&["first_k_dense_replace"])?.unwrap_or(0);
    let step = config.size_or(&["moe_layer_freq"], 1)?;
    config.layers("mlp.gate.weight", |index, layer| {
        if index < first || !index.is_multiple_of(step) {
            return Ok(None);
        }
        let mut router = RouterSpec::new(format!("{layer}.mlp.gate.weight"));
        router.groups = groups;
        router.routed_scaling_factor = scaling;
        let experts = per_expert_biased(config, "mlp_bias", format!("{layer}.mlp.experts"))?;
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        spec.shared = shared_experts(layer, num_shared, sizes[3]);
        if let Some(shared) = &mut spec.shared {
            shared.bias = bias;
        }
        Ok(Some(spec))
    })
}
