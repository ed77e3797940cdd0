//! OLMoE: softmax over all experts, top-k, not renormalized unless `norm_topk_prob`.
//! [OLMoE](https://arxiv.org/abs/2409.02060).

use moekit_quant::{MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec};

use super::common::{per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["olmoe"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    let activation = config.activation()?;
    let renormalize = config.flag_or(&["norm_topk_prob"], false)?;
    config.layers("mlp.gate.weight", |index, layer| {
        let mut router = RouterSpec::new(format!("{layer}.mlp.gate.weight"));
        router.renormalize = renormalize;
        let experts = per_expert(format!("{layer}.mlp.experts"), MlpNames::proj());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}
