//! What several families share.

use moekit_quant::{
    ExpertGroups, ExpertLayout, GroupScore, MlpNames, RouterSpec, ScoringFunction,
    SharedExpertsSpec,
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

/// `scoring_func`.
pub(super) fn scoring(
    config: &ModelConfig<'_>,
    default: &'static str,
) -> Result<ScoringFunction, CheckpointError> {
    match config.text_or(&["scoring_func"], default)? {
        "softmax" => Ok(ScoringFunction::Softmax),
        "sigmoid" => Ok(ScoringFunction::Sigmoid),
        "sqrtsoftplus" => Ok(ScoringFunction::SqrtSoftplus),
        _ => Err(config.error("scoring_func", "`softmax`, `sigmoid` or `sqrtsoftplus`")),
    }
}

/// DeepSeek-V3's router: biased scores choose, groups compete by their two best, unbiased scores
/// weigh.
pub(super) fn noaux_tc_router(
    config: &ModelConfig<'_>,
    layer: &str,
    groups: Option<ExpertGroups>,
) -> Result<RouterSpec, CheckpointError> {
    let mut router = RouterSpec::new(format!("{layer}.mlp.gate.weight"));
    router.correction_bias = Some(format!("{layer}.mlp.gate.e_score_correction_bias"));
    router.scoring = scoring(config, "sigmoid")?;
    router.groups = groups;
    router.renormalize = config.flag_or(&["norm_topk_prob"], true)?;
    Ok(router)
}
