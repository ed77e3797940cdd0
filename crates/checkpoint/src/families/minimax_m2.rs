//! MiniMax-M2: sigmoid scores, biased choice without groups, renormalized.
//! [MiniMax-M2](https://huggingface.co/MiniMaxAI/MiniMax-M2).

use moekit_quant::{MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec, ScoringFunction};

use super::common::{expect_scoring, per_expert, sizes};
use crate::{CheckpointError, Family, ModelConfig};

pub(super) const FAMILY: Family = Family::builtin(&["minimax_m2"], spec);

fn spec(config: &ModelConfig<'_>) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "intermediate_size")?;
    let activation = config.activation()?;
    expect_scoring(config, "sigmoid")?;
    let biased = config.flag_or(&["use_routing_bias"], true)?;
    if config.count(&["shared_intermediate_size"])?.unwrap_or(0) != 0 {
        return Err(config.unsupported("a shared expert", "shared_intermediate_size = 0"));
    }
    config.layers("block_sparse_moe.gate.weight", |index, layer| {
        let moe = format!("{layer}.block_sparse_moe");
        let mut router = RouterSpec::new(format!("{moe}.gate.weight"));
        router.correction_bias = biased.then(|| format!("{moe}.e_score_correction_bias"));
        router.scoring = ScoringFunction::Sigmoid;
        router.renormalize = true;
        let experts = per_expert(format!("{moe}.experts"), MlpNames::w123());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        Ok(Some(spec))
    })
}
