//! Phi-3.5-MoE: two experts by sparsemixer. [GRIN: GRadient-INformed
//! MoE](https://arxiv.org/abs/2409.12136).

use moekit_quant::{MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec, TopKSelection};

use super::common::{per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["phimoe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    if sizes[1] != 2 {
        let what = format!("sparsemixer with {} experts per token", sizes[1]);
        return Err(config.unsupported(what, "2 experts per token"));
    }
    let activation = config.activation()?;
    let epsilon = config.float(&["router_jitter_noise"])?.unwrap_or(0.01);
    config.layers("block_sparse_moe.gate.weight", |index, layer| {
        let moe = format!("{layer}.block_sparse_moe");
        let mut router = RouterSpec::new(format!("{moe}.gate.weight"));
        router.selection = TopKSelection::SparseMixer { epsilon };
        let experts = per_expert(format!("{moe}.experts"), MlpNames::w123());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}
