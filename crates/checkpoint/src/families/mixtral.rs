//! Mixtral: softmax over all experts, top-k, renormalized. Jiang et al., [Mixtral of
//! Experts](https://arxiv.org/abs/2401.04088).

use moekit_quant::{MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec};

use super::common::{per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["mixtral"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    let activation = config.activation()?;
    config.layers("block_sparse_moe.gate.weight", |index, layer| {
        let moe = format!("{layer}.block_sparse_moe");
        let mut router = RouterSpec::new(format!("{moe}.gate.weight"));
        router.renormalize = true;
        let experts = per_expert(format!("{moe}.experts"), MlpNames::w123());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}
