//! GLM-4.5: the router of DeepSeek-V3, other defaults. [GLM-4.5](https://arxiv.org/abs/2508.06471).

use moekit_quant::{GroupScore, MlpNames, MoeLayerSpec, MoeModelSpec};

use super::common::{groups, noaux_tc_router, per_expert, shared_experts, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["glm4_moe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    let groups = groups(config, GroupScore::Top2Sum, [1, 1])?;
    let scaling = config.float(&["routed_scaling_factor"])?.unwrap_or(1.0);
    let num_shared = config.count(&["n_shared_experts"])?.unwrap_or(1);
    let first = config.count(&["first_k_dense_replace"])?.unwrap_or(1);
    config.layers("mlp.gate.weight", |index, layer| {
        if index < first {
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
