//! The gate: logits, scores, the chosen experts and their weights. All in `f32`.

mod lanes;
mod logits;
mod score;
mod select;
mod sparse_mixer;

use moekit_quant::{ExpertGroups, GroupScore, RouterSpec, TopKSelection};

use self::score::Scoring;
use self::select::{Groups, grouped_top_k, sort_descending, top_k};
use self::sparse_mixer::sparse_mixer;
use crate::CpuKernel;
use crate::error::{KernelError, area, check_len, whole_rows};

/// Rows of logits that one task chooses from.
const ROWS_PER_TASK: usize = 32;

/// The experts that a gate chose for each token, and their weights.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Routed {
    /// Logical ids, `[num_tokens, top_k]`, in order of descending weight; equal weights by id.
    pub topk_ids: Vec<i64>,
    /// `[num_tokens, top_k]`
    pub topk_weights: Vec<f32>,
}

impl Routed {
    /// Ids and weights of the same shape.
    pub fn new(topk_ids: Vec<i64>, topk_weights: Vec<f32>) -> Self {
        Self {
            topk_ids,
            topk_weights,
        }
    }
}

/// Chooses experts from logits as a [`RouterSpec`] says.
///
/// ```
/// use moekit_kernels::{CpuKernel, Router};
/// use moekit_quant::RouterSpec;
///
/// let mut spec = RouterSpec::new("gate.weight");
/// spec.renormalize = true;
/// let router = Router::new(&spec, 4, 2)?;
/// // One token; experts 1 and 3 are equally good.
/// let routed = router.route(&CpuKernel::default(), &[0.0, 1.0, -1.0, 1.0], None)?;
/// assert_eq!(routed.topk_ids, [1, 3]);
/// assert_eq!(routed.topk_weights, [0.5, 0.5]);
/// # Ok::<(), moekit_kernels::KernelError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Router {
    num_experts: usize,
    top_k: usize,
    scoring: Scoring,
    selection: TopKSelection,
    groups: Option<Groups>,
    renormalize: bool,
    scaling: f32,
}

impl Router {
    /// A router over `num_experts` experts that chooses `top_k` of them.
    ///
    /// # Errors
    ///
    /// If `top_k` is not in `1..=num_experts`; if the groups do not divide the experts, or the
    /// groups that are kept hold fewer than `top_k` experts; if sparsemixer is combined with
    /// groups.
    pub fn new(spec: &RouterSpec, num_experts: usize, top_k: usize) -> Result<Self, KernelError> {
        if top_k == 0 || top_k > num_experts {
            return Err(KernelError::Gate(format!(
                "top-k is {top_k}, it must be at least 1 and at most the {num_experts} experts"
            )));
        }
        match spec.selection {
            TopKSelection::ScoresThenTopK | TopKSelection::TopKThenScores => {}
            TopKSelection::SparseMixer { epsilon } => {
                if spec.groups.is_some() || spec.correction_bias.is_some() {
                    return Err(KernelError::Gate(
                        "sparsemixer is not defined with groups or a correction bias".to_owned(),
                    ));
                }
                if !epsilon.is_finite() || epsilon < 0.0 {
                    return Err(KernelError::Gate(format!(
                        "the epsilon of sparsemixer is {epsilon}, it must be a number of at least 0"
                    )));
                }
            }
            other => {
                return Err(KernelError::Gate(format!(
                    "the selection {other:?} is not known"
                )));
            }
        }
        let groups = spec
            .groups
            .map(|g| check_groups(g, num_experts, top_k))
            .transpose()?;
        Ok(Self {
            num_experts,
            top_k,
            scoring: Scoring::new(spec.scoring)?,
            selection: spec.selection,
            groups,
            renormalize: spec.renormalize,
            scaling: spec.routed_scaling_factor,
        })
    }

    /// `E`.
    pub fn num_experts(&self) -> usize {
        self.num_experts
    }

    /// `k`.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Chooses `top_k` experts per token.
    ///
    /// A NaN among the logits of a token gives that token NaN weights and touches no other.
    ///
    /// # Arguments
    ///
    /// - `logits` - `[num_tokens, num_experts]`.
    /// - `correction_bias` - `[num_experts]`, added to the scores for choosing only.
    ///
    /// # Errors
    ///
    /// If the lengths do not agree.
    pub fn route(
        &self,
        kernel: &CpuKernel,
        logits: &[f32],
        correction_bias: Option<&[f32]>,
    ) -> Result<Routed, KernelError> {
        let shape = "[num_tokens, num_experts]";
        let num_tokens = whole_rows("logits", logits.len(), self.num_experts, shape)?;
        if let Some(bias) = correction_bias {
            check_len(
                "correction_bias",
                bias.len(),
                self.num_experts,
                "[num_experts]",
            )?;
        }
        let slots = area("topk_ids", num_tokens, self.top_k)?;
        let mut routed = Routed::new(vec![0; slots], vec![0.0; slots]);
        let ids = routed.topk_ids.chunks_mut(ROWS_PER_TASK * self.top_k);
        let weights = routed.topk_weights.chunks_mut(ROWS_PER_TASK * self.top_k);
        let tasks = logits
            .chunks(ROWS_PER_TASK * self.num_experts)
            .zip(ids.zip(weights));
        // Fewer rows are chosen from before another thread is awake.
        if num_tokens <= ROWS_PER_TASK {
            let scratch = &mut Scratch::default();
            tasks.for_each(|task| self.route_rows(task, correction_bias, scratch));
            return Ok(routed);
        }
        kernel.spread(tasks.collect(), |task| {
            self.route_rows(task, correction_bias, &mut Scratch::default());
        });
        Ok(routed)
    }

    /// Fills ids and weights of some rows of logits.
    fn route_rows(
        &self,
        (logits, (ids, weights)): (&[f32], (&mut [i64], &mut [f32])),
        bias: Option<&[f32]>,
        scratch: &mut Scratch,
    ) {
        let rows = ids
            .chunks_exact_mut(self.top_k)
            .zip(weights.chunks_exact_mut(self.top_k));
        for (logits, (ids, weights)) in logits.chunks_exact(self.num_experts).zip(rows) {
            self.route_row(logits, bias, scratch);
            for ((id, weight), &(expert, w)) in ids.iter_mut().zip(weights).zip(&scratch.pairs) {
                (*id, *weight) = (expert as i64, w);
            }
        }
    }

    /// Leaves `top_k` pairs in `scratch.pairs`, sorted.
    fn route_row(&self, logits: &[f32], bias: Option<&[f32]>, scratch: &mut Scratch) {
        let Scratch {
            scores,
            choice,
            chosen,
            pairs,
        } = scratch;
        pairs.clear();
        chosen.clear();
        scores.clear();
        scores.extend_from_slice(logits);
        match self.selection {
            TopKSelection::SparseMixer { epsilon } => {
                sparse_mixer(logits, epsilon, self.top_k, choice, pairs);
            }
            TopKSelection::TopKThenScores => {
                self.choose(scores, bias, choice, chosen);
                scores.clear();
                scores.extend(chosen.iter().map(|&e| logits[e]));
                self.scoring.apply(scores);
                pairs.extend(chosen.iter().copied().zip(scores.iter().copied()));
            }
            _ => {
                self.scoring.apply(scores);
                self.choose(scores, bias, choice, chosen);
                pairs.extend(chosen.iter().map(|&e| (e, scores[e])));
            }
        }
        // Choosing by the largest passes a NaN by, and it must not pass in silence.
        if logits.iter().fold(false, |nan, logit| nan | logit.is_nan()) {
            pairs.iter_mut().for_each(|(_, w)| *w = f32::NAN);
        }
        sort_descending(pairs);
        if self.renormalize {
            let sum: f32 = pairs.iter().map(|(_, w)| w).sum();
            // Weights that all underflowed to zero stay zero.
            if sum != 0.0 {
                pairs.iter_mut().for_each(|(_, w)| *w /= sum);
            }
        }
        pairs.iter_mut().for_each(|(_, w)| *w *= self.scaling);
    }

    /// The `top_k` experts of the largest `scores + bias`, within the groups kept.
    fn choose(
        &self,
        scores: &[f32],
        bias: Option<&[f32]>,
        choice: &mut Vec<f32>,
        chosen: &mut Vec<usize>,
    ) {
        choice.clear();
        match bias {
            Some(bias) => choice.extend(scores.iter().zip(bias).map(|(s, b)| s + b)),
            None => choice.extend_from_slice(scores),
        }
        match self.groups {
            Some(groups) => grouped_top_k(choice, groups, self.top_k, chosen),
            None => top_k(choice, 0..choice.len(), self.top_k, chosen),
        }
    }
}

#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    choice: Vec<f32>,
    chosen: Vec<usize>,
    pairs: Vec<(usize, f32)>,
}

fn check_groups(groups: ExpertGroups, experts: usize, top_k: usize) -> Result<Groups, KernelError> {
    let (num_groups, top_groups) = (groups.num_groups, groups.top_groups);
    let by_sum = match groups.score {
        GroupScore::Max => false,
        GroupScore::Top2Sum => true,
        other => {
            return Err(KernelError::Gate(format!(
                "the group score {other:?} is not known"
            )));
        }
    };
    if num_groups == 0 || !experts.is_multiple_of(num_groups) {
        return Err(KernelError::Gate(format!(
            "{experts} experts cannot be cut into {num_groups} expert groups of equal size"
        )));
    }
    if top_groups == 0 || top_groups > num_groups {
        return Err(KernelError::Gate(format!(
            "{top_groups} expert groups are to be kept, it must be at least 1 and at most all {num_groups}"
        )));
    }
    let kept = top_groups * (experts / num_groups);
    if top_k > kept {
        return Err(KernelError::Gate(format!(
            "top-k is {top_k}, but {top_groups} groups of {} experts hold only {kept}",
            experts / num_groups
        )));
    }
    Ok(Groups {
        num_groups,
        top_groups,
        by_sum,
    })
}

#[cfg(test)]
mod tests;
