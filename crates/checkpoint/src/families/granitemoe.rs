//! Granite-MoE: the top-k logits, softmax over those; the experts of a layer in two tensors.
//! [Granite 3.0](https://github.com/ibm-granite/granite-3.0-language-models).

use moekit_quant::{
    ExpertLayout, FusedOrder, FusedTensor, MoeLayerSpec, MoeModelSpec, RouterSpec, TopKSelection,
};

use super::common::sizes;
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["granitemoe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    let activation = config.activation()?;
    config.layers("block_sparse_moe.router.layer.weight", |index, layer| {
        let moe = format!("{layer}.block_sparse_moe");
        let mut router = RouterSpec::new(format!("{moe}.router.layer.weight"));
        router.selection = TopKSelection::TopKThenScores;
        let experts = ExpertLayout::Fused {
            gate_up: FusedTensor::module(format!("{moe}.input_linear")),
            order: FusedOrder::Halves,
            down: FusedTensor::module(format!("{moe}.output_linear")),
        };
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}
