//! DeepSeek-V3 and R1, Kimi-K2: sigmoid scores, groups by their two best biased scores,
//! renormalized and scaled; dense first layers, shared experts.
//! [DeepSeek-V3](https://arxiv.org/abs/2412.19437), [Kimi K2](https://arxiv.org/abs/2507.20534).

use moekit_quant::{GroupScore, MlpNames, MoeLayerSpec, MoeModelSpec};

use super::common::{groups, noaux_tc_router, per_expert, shared_experts, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(
    &["deepseek_v3", "deepseek_v32", "kimi_k2", "kimi_k25"],
    spec,
);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    let method = config.text_or(&["topk_method"], "noaux_tc")?;
    if method != "noaux_tc" {
        return Err(config.unsupported(format!("topk_method `{method}`"), "noaux_tc"));
    }
    let groups = groups(config, GroupScore::Top2Sum, [8, 4])?;
    let scaling = config.float(&["routed_scaling_factor"])?.unwrap_or(2.5);
    let num_shared = config.count(&["n_shared_experts"])?.unwrap_or(1);
    let first = config.count(&["first_k_dense_replace"])?.unwrap_or(3);
    let step = config.count(&["moe_layer_freq"])?.unwrap_or(1).max(1);
    config.layers("mlp.gate.weight", |index, layer| {
        if index < first || !index.is_multiple_of(step) {
            return Ok(None);
        }
        let mut router = noaux_tc_router(config, layer, groups)?;
        router.routed_scaling_factor = scaling;
        let experts = per_expert(format!("{layer}.mlp.experts"), MlpNames::proj());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        spec.shared = shared_experts(layer, num_shared, sizes[3]);
        Ok(Some(spec))
    })
}
