//! GLM-4.5: the router of DeepSeek-V3, other defaults. [GLM-4.5](https://arxiv.org/abs/2508.06471).

use moekit_quant::MoeModelSpec;

use super::common::{NoauxTcDefaults, noaux_tc};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["glm4_moe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    noaux_tc(
        config,
        &NoauxTcDefaults {
            groups: [1, 1],
            routed_scaling_factor: 1.0,
            first_k_dense_replace: 1,
        },
    )
}
