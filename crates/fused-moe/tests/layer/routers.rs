//! Every form of router, by kernels and in tensor operations.

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use moekit_fused_moe::*;
use moekit_quant::{ExpertGroups, GroupScore, RouterSpec, ScoringFunction, TopKSelection};

use crate::common::*;

const H: usize = 16;
const E: usize = 8;

fn sigmoid(l: f64) -> f64 {
    1.0 / (1.0 + (-l).exp())
}

/// The layer's router in plain formulas: from logits to the choice, in order of descending weight.
fn reference(spec: &RouterSpec, top_k_experts: usize, l: &[f64], bias: &[f64]) -> Choice {
    let score = |l: &[f64]| -> Vec<f64> {
        match spec.scoring {
            ScoringFunction::Softmax => softmax(l),
            ScoringFunction::Sigmoid => l.iter().map(|&l| sigmoid(l)).collect(),
            ScoringFunction::SqrtSoftplus => {
                l.iter().map(|l| (1.0 + l.exp()).ln().sqrt()).collect()
            }
            _ => panic!(),
        }
    };
    let mut choice: Choice = match spec.selection {
        TopKSelection::SparseMixer { epsilon } => sparse_mixer(l, f64::from(epsilon)),
        selection => {
            let scores = score(l);
            let by = if selection == TopKSelection::TopKThenScores {
                l
            } else {
                &scores
            };
            let biased: Vec<f64> = by.iter().zip(bias).map(|(s, b)| s + b).collect();
            let ids = top_k(&keep_groups(spec.groups, &biased), top_k_experts);
            if selection == TopKSelection::TopKThenScores {
                let chosen: Vec<f64> = ids.iter().map(|&e| l[e]).collect();
                ids.into_iter().zip(score(&chosen)).collect()
            } else {
                ids.into_iter().map(|e| (e, scores[e])).collect()
            }
        }
    };
    if spec.renormalize {
        let sum: f64 = choice.iter().map(|c| c.1).sum();
        choice.iter_mut().for_each(|c| c.1 /= sum);
    }
    choice
        .iter_mut()
        .for_each(|c| c.1 *= f64::from(spec.routed_scaling_factor));
    choice.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    choice
}

fn keep_groups(groups: Option<ExpertGroups>, values: &[f64]) -> Vec<f64> {
    let Some(groups) = groups else {
        return values.to_vec();
    };
    let size = values.len() / groups.num_groups;
    let score = |group: &[f64]| {
        let best = top_k(group, group.len().min(2));
        match groups.score {
            GroupScore::Max => group[best[0]],
            _ => best.iter().map(|&e| group[e]).sum(),
        }
    };
    let scores: Vec<f64> = values.chunks(size).map(score).collect();
    let kept = top_k(&scores, groups.top_groups);
    let keep = |(e, &v): (usize, &f64)| {
        if kept.contains(&(e / size)) {
            v
        } else {
            f64::NEG_INFINITY
        }
    };
    values.iter().enumerate().map(keep).collect()
}

fn sparse_mixer(l: &[f64], epsilon: f64) -> Choice {
    let mut masked = l.to_vec();
    let mut choice = Vec::new();
    for _ in 0..2 {
        let best = top_k(&masked, 1)[0];
        let max = masked[best];
        let near: Vec<f64> = l
            .iter()
            .zip(&masked)
            .map(|(l, m)| {
                if (max - l) / l.abs().max(max) > 2.0 * epsilon {
                    f64::NEG_INFINITY
                } else {
                    *m
                }
            })
            .collect();
        choice.push((best, softmax(&near)[best]));
        masked[best] = f64::NEG_INFINITY;
    }
    choice
}

/// Runs a router on both paths and compares ids, weights and output.
fn check(spec: &RouterSpec, top_k_experts: usize, seed: u32) {
    let device = Device::flex();
    let x = noise(13, H, seed);
    let mut outputs = Vec::new();
    for compute in [Compute::Auto, Compute::TensorOps] {
        let config = FusedMoeConfig::new(H, 12, E, top_k_experts).with_router(spec.clone());
        let mut layer = config.with_compute(compute).init(&device).unwrap();
        // Logits spread wider than the initial weights give, and biases that matter.
        let weight = layer.gate.weight.val() * 4.0;
        layer.gate.weight = Param::from_tensor(weight);
        let vector =
            |seed| Param::from_tensor(tensor(noise(1, E, seed), E, &device).squeeze_dim::<1>(0));
        layer.gate.bias = layer.gate.bias.as_ref().map(|_| vector(91));
        layer.gate.correction_bias = layer.gate.correction_bias.as_ref().map(|_| vector(92));
        let bias = match &layer.gate.correction_bias {
            Some(bias) => widen(&values(bias.val())),
            None => vec![0.0; E],
        };
        let expected: Vec<Choice> = logits(&layer, &x)
            .iter()
            .map(|l| reference(spec, top_k_experts, l, &bias))
            .collect();
        let hidden = tensor(x.clone(), H, &device);
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        let ids: Vec<i64> = expected.iter().flatten().map(|c| c.0 as i64).collect();
        assert_eq!(got.topk_ids, ids, "{spec:?}");
        let weights: Vec<f64> = expected.iter().flatten().map(|c| c.1).collect();
        assert_near(&got.topk_weights, &weights, 1e-5);
        let output = if spec.weight_on_input {
            weighted_inputs(&layer, &x, &expected)
        } else {
            routed_output(&layer, &x, &expected, true, silu_mul)
        };
        assert_near(&values(got.output.clone()), &output, 1e-5);
        outputs.push(values(got.output));
    }
    assert_near(&outputs[0], &widen(&outputs[1]), 1e-5);
}

fn weighted_inputs(layer: &FusedMoe, x: &[f32], choices: &[Choice]) -> Vec<f64> {
    let rows = x.chunks_exact(H).zip(choices);
    rows.flat_map(|(x, choice)| {
        let mut sum = vec![0.0; H];
        for &(index, weight) in choice {
            let x: Vec<f64> = x.iter().map(|&x| f64::from(x) * weight).collect();
            let y = expert(&layer.experts, index, true, silu_mul, &x);
            sum.iter_mut().zip(y).for_each(|(s, y)| *s += y);
        }
        sum
    })
    .collect()
}

fn spec(edit: impl FnOnce(&mut RouterSpec)) -> RouterSpec {
    let mut spec = RouterSpec::new("gate.weight");
    edit(&mut spec);
    spec
}

#[test]
fn scores_then_top_k() {
    for scoring in [
        ScoringFunction::Softmax,
        ScoringFunction::Sigmoid,
        ScoringFunction::SqrtSoftplus,
    ] {
        for renormalize in [false, true] {
            for biased in [false, true] {
                let spec = spec(|s| {
                    s.scoring = scoring;
                    s.renormalize = renormalize;
                    s.routed_scaling_factor = 2.5;
                    s.bias = biased.then(|| "bias".to_owned());
                    s.correction_bias = biased.then(|| "correction".to_owned());
                });
                check(&spec, 3, 1);
            }
        }
    }
}

#[test]
fn top_k_then_scores() {
    for scoring in [ScoringFunction::Softmax, ScoringFunction::Sigmoid] {
        let spec = spec(|s| {
            s.scoring = scoring;
            s.selection = TopKSelection::TopKThenScores;
            s.bias = Some("bias".to_owned());
        });
        check(&spec, 4, 2);
    }
}

#[test]
fn weight_on_input() {
    let spec = spec(|s| {
        s.scoring = ScoringFunction::Sigmoid;
        s.selection = TopKSelection::TopKThenScores;
        s.weight_on_input = true;
    });
    check(&spec, 1, 3);
    check(&spec, 2, 3);
}

#[test]
fn grouped() {
    for (groups, k) in [
        (ExpertGroups::new(4, 2, GroupScore::Top2Sum), 3),
        (ExpertGroups::new(4, 2, GroupScore::Max), 4),
        (ExpertGroups::new(2, 1, GroupScore::Top2Sum), 4),
        (ExpertGroups::new(8, 3, GroupScore::Top2Sum), 3),
        (ExpertGroups::new(1, 1, GroupScore::Max), 2),
    ] {
        for scoring in [ScoringFunction::Softmax, ScoringFunction::Sigmoid] {
            for biased in [false, true] {
                let spec = spec(|s| {
                    s.scoring = scoring;
                    s.groups = Some(groups);
                    s.renormalize = true;
                    s.routed_scaling_factor = 1.5;
                    s.correction_bias = biased.then(|| "correction".to_owned());
                });
                check(&spec, k, 4);
            }
        }
    }
}

#[test]
fn sparsemixer() {
    for epsilon in [0.01, 0.2, 5.0] {
        let spec = spec(|s| s.selection = TopKSelection::SparseMixer { epsilon });
        check(&spec, 2, 5);
    }
}

/// A NaN in one row of the gate reaches every output, be that expert chosen or not.
#[test]
fn a_nan_of_the_gate_shows() {
    let device = Device::flex();
    for selection in [TopKSelection::ScoresThenTopK, TopKSelection::TopKThenScores] {
        let spec = spec(|s| {
            s.scoring = ScoringFunction::Sigmoid;
            s.selection = selection;
        });
        for compute in [Compute::Auto, Compute::TensorOps] {
            let config = FusedMoeConfig::new(H, 12, E, 2).with_router(spec.clone());
            let mut layer = config.with_compute(compute).init(&device).unwrap();
            let mut weight = values(layer.gate.weight.val());
            weight[3 * H..4 * H].fill(f32::NAN);
            layer.gate.weight = Param::from_tensor(tensor(weight, H, &device));
            let hidden = tensor(noise(3, H, 6), H, &device);
            let got = layer
                .forward_detailed(hidden, ForwardOptions::new())
                .unwrap();
            assert!(got.topk_weights.iter().all(|w| w.is_nan()), "{selection:?}");
            assert!(values(got.output).iter().all(|y| y.is_nan()), "{compute:?}");
        }
    }
}

#[test]
fn impossible_groupings_are_refused() {
    for (groups, k, message) in [
        (
            ExpertGroups::new(3, 1, GroupScore::Max),
            2,
            "8 experts cannot be cut into 3",
        ),
        (ExpertGroups::new(4, 1, GroupScore::Max), 3, "hold only 2"),
    ] {
        let spec = spec(|s| s.groups = Some(groups));
        let config = FusedMoeConfig::new(H, 12, E, k).with_router(spec);
        let error = config.init(&Device::flex()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

/// Sends every token to the experts of its own number.
#[derive(Debug)]
struct ByPosition {
    differentiable: bool,
    offset: i64,
}

impl CustomRouting for ByPosition {
    fn route(
        &self,
        hidden: Rows<'_>,
        logits: &[f32],
        num_experts: usize,
        top_k: usize,
    ) -> Result<Routed, FusedMoeError> {
        let tokens = logits.len() / num_experts;
        assert_eq!(hidden.len(), tokens * H);
        let ids = (0..tokens * top_k).map(|slot| (slot % num_experts) as i64 + self.offset);
        let ids: Vec<i64> = ids.collect();
        let weights = vec![0.5; ids.len()];
        Ok(Routed::new(ids, weights))
    }

    fn weights(&self, logits: Tensor<2>, topk_ids: &[i64]) -> Option<Tensor<2>> {
        let tokens = logits.dims()[0];
        let zero = logits.sum_dim(1).mul_scalar(0.0);
        self.differentiable
            .then(|| zero.expand([tokens, topk_ids.len() / tokens]) + 0.5)
    }
}

#[test]
fn custom() {
    let device = Device::flex();
    let x = noise(6, H, 9);
    let expected: Vec<Choice> = (0..6)
        .map(|t| (0..3).map(|j| ((3 * t + j) % E, 0.5)).collect())
        .collect();
    let layer = |differentiable, offset, compute| {
        let routing = ByPosition {
            differentiable,
            offset,
        };
        let config = FusedMoeConfig::new(H, 12, E, 3).with_custom_routing(Arc::new(routing));
        config.with_compute(compute).init(&device).unwrap()
    };
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = layer(false, 0, compute);
        let output = layer.forward(tensor(x.clone(), H, &device)).unwrap();
        assert_near(
            &values(output),
            &routed_output(&layer, &x, &expected, true, silu_mul),
            1e-5,
        );
    }
    let wrong = layer(false, E as i64, Compute::Auto);
    let error = wrong
        .forward(tensor(x.clone(), H, &device))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ByPosition") && error.contains("chose expert 8"),
        "{error}"
    );

    let hidden = || tensor(x.clone(), H, &device).autodiff().require_grad();
    let error = layer(false, 0, Compute::Auto)
        .forward(hidden())
        .unwrap_err()
        .to_string();
    assert!(error.contains("CustomRouting::weights"), "{error}");
    let differentiable = layer(true, 0, Compute::Auto);
    let output = differentiable.forward(hidden()).unwrap();
    let expected = routed_output(&differentiable, &x, &expected, true, silu_mul);
    assert_near(&values(output.inner()), &expected, 1e-5);
}
