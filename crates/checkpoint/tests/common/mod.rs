//! A MoE layer in plain `f32`: the formulas of `RouterSpec` and `ExpertMlp`, one number at a time.

use std::sync::Arc;

use moekit_quant::{
    Activation, ExpertLinear, ExpertMlp, ExpertWeights, GroupScore, MoeLayerSpec, RouterSpec,
    ScoringFunction, TensorSource, TopKSelection, read_floats,
};
use moekit_routing::{ExpertRouting, Placement, Rank, RankView, RoutingTable, Topology};

/// Every rank of a placement.
pub(crate) fn ranks(num_experts: usize, slots: &[Vec<usize>], num_shared: usize) -> Vec<RankView> {
    let placement = Placement::from_ranks(num_experts, slots).unwrap();
    let topology = Topology::new(slots.len()).unwrap();
    let table = Arc::new(RoutingTable::new(placement, topology, num_shared, 0).unwrap());
    let view = |rank| RankView::new(Rank::new(rank), Arc::clone(&table)).unwrap();
    (0..slots.len()).map(view).collect()
}

/// `y = W x + b` for every token; `x` is `[T][in]`, the result `[T][out]`.
fn linear(linear: &ExpertLinear, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut out = vec![Vec::with_capacity(linear.weight.rows()); x.len()];
    let mut row = vec![0.0; linear.weight.cols()];
    for r in 0..linear.weight.rows() {
        linear.weight.dequantize_row(r, &mut row).unwrap();
        let bias = linear.bias.as_ref().map_or(0.0, |b| b[r]);
        for (out, x) in out.iter_mut().zip(x) {
            out.push(dot(&row, x) + bias);
        }
    }
    out
}

fn dot(w: &[f32], x: &[f32]) -> f32 {
    w.iter().zip(x).map(|(w, x)| w * x).sum()
}

fn mlp(expert: &ExpertMlp, activation: Activation, x: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let mut inner = linear(&expert.up, x);
    let gate = expert.gate.as_ref().map(|gate| linear(gate, x));
    for (t, row) in inner.iter_mut().enumerate() {
        for (i, up) in row.iter_mut().enumerate() {
            let gate = gate.as_ref().map_or(0.0, |gate| gate[t][i]);
            *up = activation.apply(gate, *up);
        }
    }
    linear(&expert.down, &inner)
}

/// Descending, ties to the lowest index.
fn order(scores: &[f32]) -> Vec<usize> {
    let mut ids: Vec<usize> = (0..scores.len()).collect();
    ids.sort_by(|&a, &b| scores[b].total_cmp(&scores[a]).then(a.cmp(&b)));
    ids
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

fn score(scoring: ScoringFunction, logits: &[f32]) -> Vec<f32> {
    match scoring {
        ScoringFunction::Softmax => softmax(logits),
        ScoringFunction::Sigmoid => logits.iter().map(|l| 1.0 / (1.0 + (-l).exp())).collect(),
        _ => logits.iter().map(|l| l.exp().ln_1p().sqrt()).collect(),
    }
}

fn sparse_mixer(logits: &[f32], k: usize, epsilon: f32) -> Vec<(usize, f32)> {
    let mut left = logits.to_vec();
    (0..k)
        .map(|_| {
            let best = order(&left)[0];
            let max = left[best];
            let masked: Vec<f32> = logits
                .iter()
                .zip(&left)
                .map(
                    |(&l, &left)| match (max - l) / l.abs().max(max) > 2.0 * epsilon {
                        true => f32::NEG_INFINITY,
                        false => left,
                    },
                )
                .collect();
            left[best] = f32::NEG_INFINITY;
            (best, softmax(&masked)[best])
        })
        .collect()
}

/// The experts of a token and their weights.
pub(crate) fn route(spec: &MoeLayerSpec, logits: &[f32], correction: &[f32]) -> Vec<(usize, f32)> {
    let router = &spec.router;
    let scores = match router.selection {
        TopKSelection::SparseMixer { epsilon } => {
            return sparse_mixer(logits, spec.top_k, epsilon);
        }
        TopKSelection::TopKThenScores => logits.to_vec(),
        _ => score(router.scoring, logits),
    };
    let mut choice: Vec<f32> = scores.iter().zip(correction).map(|(s, c)| s + c).collect();
    keep_best_groups(router, &mut choice);
    let ids = &order(&choice)[..spec.top_k];
    let mut weights: Vec<f32> = ids.iter().map(|&id| scores[id]).collect();
    if router.selection == TopKSelection::TopKThenScores {
        weights = score(router.scoring, &weights);
    }
    if router.renormalize {
        let sum: f32 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
    }
    let scaling = router.routed_scaling_factor;
    ids.iter()
        .copied()
        .zip(weights.iter().map(|w| w * scaling))
        .collect()
}

fn keep_best_groups(router: &RouterSpec, choice: &mut [f32]) {
    let Some(groups) = router.groups else {
        return;
    };
    let size = choice.len() / groups.num_groups;
    let group_scores: Vec<f32> = choice
        .chunks(size)
        .map(|group| {
            let best = order(group);
            match groups.score {
                GroupScore::Top2Sum => group[best[0]] + group[best[1]],
                _ => group[best[0]],
            }
        })
        .collect();
    for &group in &order(&group_scores)[groups.top_groups..] {
        choice[group * size..][..size].fill(f32::NEG_INFINITY);
    }
}

/// What a layer makes of its tokens.
pub(crate) struct Output {
    /// `[T][H]`
    pub(crate) rows: Vec<Vec<f32>>,
    /// `[T][k]`
    pub(crate) routed: Vec<Vec<(usize, f32)>>,
}

/// The layer, summed over all ranks; `x` is `[T][H]`.
pub(crate) fn forward(
    spec: &MoeLayerSpec,
    tensors: &dyn TensorSource,
    ranks: &[(RankView, ExpertWeights)],
    x: &[Vec<f32>],
) -> Output {
    let num_experts = spec.num_experts;
    let gate = read_floats(tensors, &spec.router.weight, num_experts * spec.hidden_size).unwrap();
    let vector = |name: &Option<String>| match name {
        Some(name) => read_floats(tensors, name, num_experts).unwrap(),
        None => vec![0.0; num_experts],
    };
    let bias = vector(&spec.router.bias);
    let correction = vector(&spec.router.correction_bias);
    let routed: Vec<Vec<(usize, f32)>> = x
        .iter()
        .map(|x| {
            let rows = gate.chunks(spec.hidden_size).zip(&bias);
            let logits: Vec<f32> = rows.map(|(w, b)| dot(w, x) + b).collect();
            route(spec, &logits, &correction)
        })
        .collect();
    let mut rows = shared(spec, tensors, &ranks[0], x);
    for id in 0..num_experts {
        let chosen = routed.iter().enumerate().flat_map(|(t, experts)| {
            let of_this = experts.iter().filter(move |(expert, _)| *expert == id);
            of_this.map(move |(_, weight)| (t, *weight))
        });
        let (tokens, weights): (Vec<usize>, Vec<f32>) = chosen.unzip();
        let on_input = spec.router.weight_on_input;
        let pairs = tokens.iter().zip(&weights);
        let scaled = |w: f32| move |x: &f32| if on_input { x * w } else { *x };
        let input: Vec<Vec<f32>> = pairs
            .map(|(&t, &w)| x[t].iter().map(scaled(w)).collect())
            .collect();
        let output = mlp(find(ranks, id), spec.activation, &input);
        for ((t, weight), y) in tokens.into_iter().zip(weights).zip(output) {
            add(&mut rows[t], &y, if on_input { 1.0 } else { weight });
        }
    }
    Output { rows, routed }
}

fn add(out: &mut [f32], y: &[f32], weight: f32) {
    for (out, y) in out.iter_mut().zip(y) {
        *out += weight * y;
    }
}

/// The last replica, so that more than the first rank is looked at.
fn find(ranks: &[(RankView, ExpertWeights)], id: usize) -> &ExpertMlp {
    ranks
        .iter()
        .rev()
        .find_map(|(rank, weights)| {
            let slot = rank.map_global_to_local(id as i64)?;
            Some(&*weights.experts[slot.index()])
        })
        .unwrap()
}

fn shared(
    spec: &MoeLayerSpec,
    tensors: &dyn TensorSource,
    (rank, weights): &(RankView, ExpertWeights),
    x: &[Vec<f32>],
) -> Vec<Vec<f32>> {
    let mut rows = vec![vec![0.0; spec.hidden_size]; x.len()];
    let Some(shared) = &spec.shared else {
        return rows;
    };
    let gate = shared
        .gate
        .as_ref()
        .map(|gate| read_floats(tensors, gate, spec.hidden_size).unwrap());
    let fused = weights.experts.iter().rev().take(rank.num_shared_experts());
    for expert in fused.chain(&weights.shared) {
        for ((row, y), x) in rows.iter_mut().zip(mlp(expert, spec.activation, x)).zip(x) {
            let gate = gate
                .as_ref()
                .map_or(1.0, |gate| 1.0 / (1.0 + (-dot(gate, x)).exp()));
            add(row, &y, gate * shared.scaling);
        }
    }
    rows
}
