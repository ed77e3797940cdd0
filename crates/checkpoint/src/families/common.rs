//! What several families share.

use moekit_quant::{
    ExpertGroups, ExpertLayout, GroupScore, MlpNames, MoeLayerSpec, MoeModelSpec, RouterSpec,
    ScoringFunction, SharedExpertsSpec,
};

use crate::{CheckpointError, ModelConfig};

/// The spellings of `E`.
pub(super) const NUM_EXPERTS: [&str; 4] = [
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "moe_num_experts",
];
/// The spellings of `k`.
pub(super) const TOP_K: [&str; 3] = ["num_experts_per_tok", "moe_k", "moe_top_k"];

/// `[E, k, H, I]`, where `intermediate` is the spelling of `I`.
pub(super) fn sizes(
    config: &ModelConfig<'_>,
    intermediate: &str,
) -> Result<[usize; 4], CheckpointError> {
    Ok([
        config.size(&NUM_EXPERTS)?,
        config.size(&TOP_K)?,
        config.size(&["hidden_size"])?,
        config.size(&[intermediate])?,
    ])
}

/// One module per expert, without biases.
pub(super) fn per_expert(module: String, names: MlpNames) -> ExpertLayout {
    ExpertLayout::PerExpert {
        module,
        names,
        bias: false,
    }
}

/// One module per expert of a family whose `key` gives MLPs biases: those of the shared experts
/// always, those of routed experts where the checkpoint has them. Which of the two is meant depends
/// on the version of the original code.
pub(super) fn per_expert_biased(
    config: &ModelConfig<'_>,
    key: &str,
    module: String,
) -> Result<ExpertLayout, CheckpointError> {
    let names = MlpNames::proj();
    let stored = config.has_tensor(&format!("{module}.0.{}.bias", names.up));
    Ok(ExpertLayout::PerExpert {
        module,
        names,
        bias: stored && config.flag_or(&[key], false)?,
    })
}

/// `mlp.shared_experts`, `count` of `intermediate_size` each; `None` if there are none.
pub(super) fn shared_experts(
    layer: &str,
    count: usize,
    intermediate_size: usize,
) -> Option<SharedExpertsSpec> {
    let module = format!("{layer}.mlp.shared_experts");
    let width = intermediate_size.saturating_mul(count);
    let mut shared = SharedExpertsSpec::new(module, MlpNames::proj(), width);
    shared.num_experts = count;
    (count > 0).then_some(shared)
}

/// The groups of `n_group` and `topk_group`; `None` where all experts are one group.
pub(super) fn groups(
    config: &ModelConfig<'_>,
    score: GroupScore,
    default: [usize; 2],
) -> Result<Option<ExpertGroups>, CheckpointError> {
    let num_groups = config.count(&["n_group"])?.unwrap_or(default[0]);
    let top_groups = config.count(&["topk_group"])?.unwrap_or(default[1]);
    let one = num_groups == 1 && top_groups == 1;
    Ok((!one).then(|| ExpertGroups::new(num_groups, top_groups, score)))
}

/// Refuses a `scoring_func` other than the one that the family's original code computes.
pub(super) fn expect_scoring(
    config: &ModelConfig<'_>,
    scoring: &'static str,
) -> Result<(), CheckpointError> {
    match config.text_or(&["scoring_func"], scoring)? {
        name if name == scoring => Ok(()),
        _ => Err(config.error("scoring_func", &format!("`{scoring}`"))),
    }
}

/// What a family with DeepSeek-V3's router takes for what its configuration leaves out.
pub(super) struct NoauxTcDefaults {
    /// `n_group` and `topk_group`.
    pub(super) groups: [usize; 2],
    pub(super) routed_scaling_factor: f32,
    pub(super) first_k_dense_replace: usize,
}

/// A model with DeepSeek-V3's router (`noaux_tc`: biased scores choose, groups compete by their two
/// best, unbiased scores weigh), shared experts and dense first layers.
pub(super) fn noaux_tc(
    config: &ModelConfig<'_>,
    defaults: &NoauxTcDefaults,
) -> Result<MoeModelSpec, CheckpointError> {
    let sizes = sizes(config, "moe_intermediate_size")?;
    let activation = config.activation()?;
    let groups = groups(config, GroupScore::Top2Sum, defaults.groups)?;
    expect_scoring(config, "sigmoid")?;
    let renormalize = config.flag_or(&["norm_topk_prob"], true)?;
    let scaling = config.float(&["routed_scaling_factor"])?;
    let num_shared = config.count(&["n_shared_experts"])?.unwrap_or(1);
    let first = config.count(&["first_k_dense_replace"])?;
    let first = first.unwrap_or(defaults.first_k_dense_replace);
    let step = config.size_or(&["moe_layer_freq"], 1)?;
    config.layers("mlp.gate.weight", |index, layer| {
        if index < first || !index.is_multiple_of(step) {
            return Ok(None);
        }
        let mut router = RouterSpec::new(format!("{layer}.mlp.gate.weight"));
        router.correction_bias = Some(format!("{layer}.mlp.gate.e_score_correction_bias"));
        router.scoring = ScoringFunction::Sigmoid;
        router.groups = groups;
        router.renormalize = renormalize;
        router.routed_scaling_factor = scaling.unwrap_or(defaults.routed_scaling_factor);
        let experts = per_expert(format!("{layer}.mlp.experts"), MlpNames::proj());
        let mut spec = MoeLayerSpec::new(index, sizes, experts, router);
        spec.activation = activation;
        spec.shared = shared_experts(layer, num_shared, sizes[3]);
        Ok(Some(spec))
    })
}
