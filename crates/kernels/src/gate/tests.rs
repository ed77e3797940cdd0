use half::bf16;
use moekit_quant::ScoringFunction;

use super::*;
use crate::Rows;

const NAN: f32 = f32::NAN;

fn spec() -> RouterSpec {
    RouterSpec::new("w")
}

fn route(spec: &RouterSpec, top_k: usize, logits: &[f32], bias: Option<&[f32]>) -> Routed {
    let router = Router::new(spec, logits.len(), top_k).unwrap();
    router.route(&CpuKernel::default(), logits, bias).unwrap()
}

fn assert_weights(routed: &Routed, ids: &[i64], weights: &[f32]) {
    assert_eq!(routed.topk_ids, ids);
    for (got, want) in routed.topk_weights.iter().zip(weights) {
        assert!(
            (got - want).abs() < 1e-6,
            "{:?} {weights:?}",
            routed.topk_weights
        );
    }
}

/// Expected values of these tests: Python's `math`, by the formulas of the specification.
const LOGITS: [f32; 6] = [0.1, 1.2, -0.3, 0.7, 1.9, -1.1];

#[test]
fn softmax_with_and_without_renormalization() {
    // exp(l) / sum: 0.0772, 0.2321, 0.0518, 0.1408, 0.4674, 0.0307 (rounded)
    let mut spec = spec();
    let plain = route(&spec, 2, &LOGITS, None);
    let sum: f32 = LOGITS.iter().map(|l| l.exp()).sum();
    assert_weights(&plain, &[4, 1], &[1.9_f32.exp() / sum, 1.2_f32.exp() / sum]);
    spec.renormalize = true;
    spec.routed_scaling_factor = 2.5;
    let odds = 1.0 / (1.0 + (1.2_f32 - 1.9).exp());
    assert_weights(
        &route(&spec, 2, &LOGITS, None),
        &[4, 1],
        &[2.5 * odds, 2.5 * (1.0 - odds)],
    );
}

#[test]
fn top_k_before_softmax() {
    let mut spec = spec();
    spec.selection = TopKSelection::TopKThenScores;
    let odds = 1.0 / (1.0 + (1.2_f32 - 1.9).exp());
    assert_weights(
        &route(&spec, 2, &LOGITS, None),
        &[4, 1],
        &[odds, 1.0 - odds],
    );
    // Llama 4: the sigmoid of the largest logit.
    spec.scoring = ScoringFunction::Sigmoid;
    assert_weights(
        &route(&spec, 1, &LOGITS, None),
        &[4],
        &[1.0 / (1.0 + (-1.9_f32).exp())],
    );
}

#[test]
fn the_correction_bias_chooses_and_does_not_weigh() {
    let mut spec = spec();
    spec.scoring = ScoringFunction::Sigmoid;
    let bias = [0.0, 0.0, 5.0, 0.0, -5.0, 0.0];
    let sigmoid = |l: f32| 1.0 / (1.0 + (-l).exp());
    let routed = route(&spec, 2, &LOGITS, Some(&bias));
    // Expert 2 by its bias, expert 1 by its score; in order of weight, not of choice.
    assert_weights(&routed, &[1, 2], &[sigmoid(1.2), sigmoid(-0.3)]);
}

#[test]
fn groups_limit_the_choice() {
    let mut spec = spec();
    spec.scoring = ScoringFunction::Sigmoid;
    spec.renormalize = true;
    spec.groups = Some(ExpertGroups::new(3, 1, GroupScore::Top2Sum));
    let sigmoid = |l: f32| 1.0 / (1.0 + (-l).exp());
    // Sums of sigmoids: group 0 1.294, group 1 1.094, group 2 1.120.
    let (a, b) = (sigmoid(1.2), sigmoid(0.1));
    assert_weights(
        &route(&spec, 2, &LOGITS, None),
        &[1, 0],
        &[a / (a + b), b / (a + b)],
    );
    spec.groups = Some(ExpertGroups::new(3, 1, GroupScore::Max));
    let (a, b) = (sigmoid(1.9), sigmoid(-1.1));
    assert_weights(
        &route(&spec, 2, &LOGITS, None),
        &[4, 5],
        &[a / (a + b), b / (a + b)],
    );
    // Groups of one expert: group-limited choice of k groups is choice of k experts.
    spec.groups = Some(ExpertGroups::new(6, 2, GroupScore::Top2Sum));
    assert_eq!(route(&spec, 2, &LOGITS, None).topk_ids, [4, 1]);
    // One group is no group.
    spec.groups = Some(ExpertGroups::new(1, 1, GroupScore::Top2Sum));
    assert_eq!(route(&spec, 2, &LOGITS, None).topk_ids, [4, 1]);
}

#[test]
fn sqrt_softplus() {
    let mut spec = spec();
    spec.scoring = ScoringFunction::SqrtSoftplus;
    let score = |l: f32| (1.0 + l.exp()).ln().sqrt();
    assert_weights(
        &route(&spec, 2, &LOGITS, None),
        &[4, 1],
        &[score(1.9), score(1.2)],
    );
}

/// PhiMoE with its epsilon of 0.01: experts within 2 % of the best share the softmax.
#[test]
fn sparsemixer() {
    let mut spec = spec();
    spec.selection = TopKSelection::SparseMixer { epsilon: 0.01 };
    let logits = [1.0, 1.99, 2.0, 0.5, 0.99];
    let routed = route(&spec, 2, &logits, None);
    // First: 2.0, and 1.99 is within 2 %. Second: 1.99 alone, since expert 2 is masked.
    let first = 1.0 / (1.0 + (1.99_f32 - 2.0).exp());
    assert_weights(&routed, &[1, 2], &[1.0, first]);
    // Second of three near ones: its softmax has the third beside it.
    let logits = [2.0, 1.99, 1.98];
    let routed = route(&spec, 2, &logits, None);
    let first = 1.0 / (1.0 + (-0.01_f32).exp() + (-0.02_f32).exp());
    let second = 1.0 / (1.0 + (-0.01_f32).exp());
    assert_weights(&routed, &[1, 0], &[second, first]);
}

#[test]
fn ties_zeros_and_nans() {
    let mut spec = spec();
    spec.renormalize = true;
    assert_weights(&route(&spec, 2, &[0.5; 4], None), &[0, 1], &[0.5, 0.5]);
    spec.scoring = ScoringFunction::Sigmoid;
    let routed = route(&spec, 2, &[-200.0; 4], None);
    assert_weights(&routed, &[0, 1], &[0.0, 0.0]);

    let router = Router::new(&spec, 3, 2).unwrap();
    let logits = [0.0, 1.0, 2.0, NAN, 1.0, NAN, 2.0, 1.0, 0.0];
    let routed = router.route(&CpuKernel::default(), &logits, None).unwrap();
    assert_eq!(routed.topk_ids[..2], [2, 1]);
    assert_eq!(routed.topk_ids[4..], [0, 1]);
    assert_eq!(routed.topk_ids[2..4], [0, 1]);
    spec.scoring = ScoringFunction::Softmax;
    assert!(
        route(&spec, 2, &[NAN; 4], None)
            .topk_weights
            .iter()
            .all(|w| w.is_nan())
    );
    assert_eq!(route(&spec, 2, &[NAN; 4], None).topk_ids, [0, 1]);
}

/// A NaN that is not among the chosen shows in the weights, whatever the router; no other token
/// changes.
#[test]
fn nan_logits_reach_all_weights() {
    let logits = [NAN, 3.0, 2.0, 1.0, 0.0, 3.0, 2.0, 1.0];
    for scoring in [
        ScoringFunction::Softmax,
        ScoringFunction::Sigmoid,
        ScoringFunction::SqrtSoftplus,
    ] {
        for selection in [
            TopKSelection::ScoresThenTopK,
            TopKSelection::TopKThenScores,
            TopKSelection::SparseMixer { epsilon: 0.01 },
        ] {
            for renormalize in [false, true] {
                let mut spec = spec();
                (spec.scoring, spec.selection, spec.renormalize) =
                    (scoring, selection, renormalize);
                let router = Router::new(&spec, 4, 2).unwrap();
                let routed = router.route(&CpuKernel::default(), &logits, None).unwrap();
                let (poisoned, clean) = routed.topk_weights.split_at(2);
                assert!(poisoned.iter().all(|w| w.is_nan()), "{spec:?} {poisoned:?}");
                let alone = route(&spec, 2, &logits[4..], None);
                assert_eq!(
                    (clean, &routed.topk_ids[2..]),
                    (&alone.topk_weights[..], &alone.topk_ids[..])
                );
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    let mut spec = spec();
    spec.groups = Some(ExpertGroups::new(4, 2, GroupScore::Max));
    let router = Router::new(&spec, 16, 3).unwrap();
    let logits: Vec<f32> = (0..16 * 70).map(|i| (i as f32 * 0.713).sin()).collect();
    let kernel = CpuKernel::with_threads(3).unwrap();
    let all = router.route(&kernel, &logits, None).unwrap();
    for (row, logits) in logits.chunks_exact(16).enumerate() {
        let alone = router.route(&CpuKernel::default(), logits, None).unwrap();
        assert_eq!(alone.topk_ids, all.topk_ids[row * 3..][..3]);
        assert_eq!(alone.topk_weights, all.topk_weights[row * 3..][..3]);
    }
    assert_eq!(router.route(&kernel, &[], None).unwrap(), Routed::default());
}

#[test]
fn impossible_gates_are_refused_by_name() {
    let refused = |spec: &RouterSpec, experts, top_k, message: &str| {
        let error = Router::new(spec, experts, top_k).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    };
    let grouped = |num, top| {
        let mut spec = spec();
        spec.groups = Some(ExpertGroups::new(num, top, GroupScore::Max));
        spec
    };
    refused(&spec(), 4, 0, "top-k is 0");
    refused(&spec(), 4, 5, "at most the 4 experts");
    refused(&grouped(3, 1), 8, 1, "8 experts cannot be cut into 3");
    refused(&grouped(0, 0), 8, 1, "into 0 expert groups");
    refused(&grouped(4, 0), 8, 1, "0 expert groups are to be kept");
    refused(&grouped(4, 5), 8, 1, "5 expert groups are to be kept");
    refused(
        &grouped(4, 2),
        8,
        5,
        "top-k is 5, but 2 groups of 2 experts hold only 4",
    );
    let mut mixer = grouped(4, 2);
    mixer.selection = TopKSelection::SparseMixer { epsilon: 0.01 };
    refused(&mixer, 8, 2, "sparsemixer");
    mixer.groups = None;
    mixer.selection = TopKSelection::SparseMixer { epsilon: NAN };
    refused(&mixer, 8, 2, "epsilon");

    let router = Router::new(&spec(), 4, 2).unwrap();
    let kernel = CpuKernel::default();
    assert!(router.route(&kernel, &[0.0; 6], None).is_err());
    assert!(router.route(&kernel, &[0.0; 4], Some(&[0.0; 3])).is_err());
}

#[test]
fn logits() {
    let weight: Vec<f32> = (0..50 * 21).map(|i| (i as f32 * 0.37).sin()).collect();
    let x: Vec<bf16> = (0..3 * 21)
        .map(|i| bf16::from_f32((i as f32 * 0.11).cos()))
        .collect();
    let bias: Vec<f32> = (0..50).map(|i| i as f32 * 0.1).collect();
    let kernel = CpuKernel::with_threads(2).unwrap();
    let got = kernel
        .gate_logits(Rows::Bf16(&x), 21, &weight[..], Some(&bias))
        .unwrap();
    for (i, got) in got.iter().enumerate() {
        let (row, expert) = (i / 50, i % 50);
        let products = x[row * 21..][..21].iter().zip(&weight[expert * 21..]);
        let sum: f64 = products
            .map(|(x, &w)| f64::from(x.to_f32()) * f64::from(w))
            .sum();
        let want = sum + f64::from(bias[expert]);
        assert!((f64::from(*got) - want).abs() < 1e-5, "{got} {want}");
    }
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let one = kernel
        .gate_logits(&wide[21..42], 21, &weight[..], Some(&bias))
        .unwrap();
    assert_eq!(one, got[50..100], "alone and as f32");
    assert!(
        kernel
            .gate_logits(&wide[..20], 21, &weight[..], None)
            .is_err()
    );
    assert!(
        kernel
            .gate_logits(&wide[..], 21, &weight[1..], None)
            .is_err()
    );
    assert!(
        kernel
            .gate_logits(&wide[..], 21, &weight[..], Some(&[0.0]))
            .is_err()
    );
    assert!(
        kernel
            .gate_logits(&[0.0_f32; 0][..], 21, &weight[..], None)
            .unwrap()
            .is_empty()
    );
}

/// Inputs of a gate of any size: hidden, weight and bias.
fn gate_inputs(tokens: usize, experts: usize, width: usize) -> [Vec<f32>; 3] {
    let wave = |len: usize, step: f32| (0..len).map(|i| (i as f32 * step).sin()).collect();
    [
        wave(tokens * width, 0.113),
        wave(experts * width, 0.371),
        wave(experts, 1.7),
    ]
}

/// Every instruction set against `f64`, in every combination of types, at sizes around the tiles;
/// the vector paths agree to the bit.
#[test]
fn logits_on_every_instruction_set() {
    for (tokens, experts, width) in [(1, 1, 1), (3, 9, 37), (5, 33, 64), (9, 70, 131), (4, 8, 16)] {
        let [hidden, weight, bias] = gate_inputs(tokens, experts, width);
        let short =
            |values: &[f32]| -> Vec<bf16> { values.iter().map(|v| bf16::from_f32(*v)).collect() };
        let (hidden_bf16, weight_bf16) = (short(&hidden), short(&weight));
        for case in 0..4 {
            let x = if case & 1 == 0 {
                Rows::F32(&hidden)
            } else {
                Rows::Bf16(&hidden_bf16)
            };
            let w = if case & 2 == 0 {
                Rows::F32(&weight)
            } else {
                Rows::Bf16(&weight_bf16)
            };
            let wide = |rows: Rows<'_>| -> Vec<f64> {
                match rows {
                    Rows::F32(v) => v.iter().map(|v| f64::from(*v)).collect(),
                    Rows::Bf16(v) => v.iter().map(|v| f64::from(v.to_f32())).collect(),
                }
            };
            let (exact_x, exact_w) = (wide(x), wide(w));
            let mut vector: Option<Vec<f32>> = None;
            for isa in crate::Isa::available() {
                let kernel = CpuKernel::with_threads(2).unwrap().with_isa(isa).unwrap();
                let got = kernel.gate_logits(x, width, w, Some(&bias)).unwrap();
                for (i, got) in got.iter().enumerate() {
                    let (token, expert) = (i / experts, i % experts);
                    let products = exact_x[token * width..][..width].iter();
                    let products = products.zip(&exact_w[expert * width..][..width]);
                    let want: f64 = products.map(|(x, w)| x * w).sum::<f64>();
                    let want = want + f64::from(bias[expert]);
                    assert!((f64::from(*got) - want).abs() < 1e-4, "{isa} {got} {want}");
                }
                if isa != crate::Isa::Portable {
                    let first = vector.get_or_insert_with(|| got.clone());
                    assert_eq!(*first, got, "{isa}");
                }
            }
        }
    }
}

/// Large enough that several threads take part: by experts for one token, by tokens for many.
#[test]
fn logits_depend_on_neither_batch_nor_threads() {
    let (tokens, experts, width) = (23, 500, 1500);
    let [hidden, weight, bias] = gate_inputs(tokens, experts, width);
    for isa in crate::Isa::available() {
        let kernel = |threads| {
            CpuKernel::with_threads(threads)
                .unwrap()
                .with_isa(isa)
                .unwrap()
        };
        let (one, five) = (kernel(1), kernel(5));
        let run = |kernel: &CpuKernel, x: &[f32]| {
            kernel
                .gate_logits(x, width, &weight[..], Some(&bias))
                .unwrap()
        };
        let all = run(&one, &hidden);
        assert_eq!(all, run(&five, &hidden));
        for count in [1, 2, 5] {
            let few = &hidden[7 * width..(7 + count) * width];
            let want = &all[7 * experts..(7 + count) * experts];
            assert_eq!(run(&one, few), want, "{isa} {count}");
            assert_eq!(run(&five, few), want, "{isa} {count} on five threads");
        }
    }
}
