use serde::{Deserialize, Serialize};

/// From logits to scores.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ScoringFunction {
    /// `softmax(l)` over the experts.
    #[default]
    Softmax,
    /// `sigmoid(l)`.
    Sigmoid,
    /// `sqrt(ln(1 + exp(l)))` (DeepSeek-V4).
    SqrtSoftplus,
}

/// How the top-k experts are found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum TopKSelection {
    /// Scores of all experts, then the `k` largest (plus correction bias, within the groups kept).
    #[default]
    ScoresThenTopK,
    /// The `k` largest logits, then scores over those `k` alone.
    TopKThenScores,
    /// PhiMoE's sparsemixer, `k = 2`. Expert by expert: `e = argmax l` with `m = max l`; experts
    /// with `(m - l) / max(|l|, m) > 2 * epsilon` are masked, the weight is the softmax of the
    /// others at `e`. For the second expert the first one is masked out of argmax and softmax.
    SparseMixer {
        /// `router_jitter_noise` of the configuration.
        epsilon: f32,
    },
}

/// The score of a group of experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum GroupScore {
    /// The largest score (DeepSeek-V2).
    Max,
    /// The sum of the two largest biased scores (DeepSeek-V3).
    Top2Sum,
}

/// Group-limited choice: experts compete only within the best groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ExpertGroups {
    /// Groups of consecutive experts, of equal size.
    pub num_groups: usize,
    /// Groups that are kept per token.
    pub top_groups: usize,
    /// How groups are compared.
    pub score: GroupScore,
}

impl ExpertGroups {
    /// Keeps `top_groups` of `num_groups`.
    pub const fn new(num_groups: usize, top_groups: usize, score: GroupScore) -> Self {
        Self {
            num_groups,
            top_groups,
            score,
        }
    }
}

/// How tokens choose experts and what the chosen ones weigh.
///
/// Logits `l = W x + bias` give scores `s`. Experts are chosen by `s + correction_bias` (within the
/// groups kept), ties to the lowest id; their weights are the scores *without* correction bias,
/// divided by their sum if `renormalize`, times `routed_scaling_factor`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct RouterSpec {
    /// Tensor `W`, `[E, H]`.
    pub weight: String,
    /// Tensor of the logits' bias, `[E]`.
    pub bias: Option<String>,
    /// Tensor that is added to the scores for choosing only, `E` values in any shape.
    pub correction_bias: Option<String>,
    /// From logits to scores.
    pub scoring: ScoringFunction,
    /// How the top-k are found.
    pub selection: TopKSelection,
    /// Whether the weights of a token are made to sum to 1 (before the scaling factor).
    pub renormalize: bool,
    /// Group-limited choice.
    pub groups: Option<ExpertGroups>,
    /// What all weights are multiplied by.
    pub routed_scaling_factor: f32,
    /// Whether a weight multiplies the expert's input instead of its output (Llama 4, `k = 1`).
    pub weight_on_input: bool,
}

impl RouterSpec {
    /// Softmax over all experts, top-k, not renormalized.
    pub fn new(weight: impl Into<String>) -> Self {
        Self {
            weight: weight.into(),
            bias: None,
            correction_bias: None,
            scoring: ScoringFunction::Softmax,
            selection: TopKSelection::ScoresThenTopK,
            renormalize: false,
            groups: None,
            routed_scaling_factor: 1.0,
            weight_on_input: false,
        }
    }
}
