//! The gate: logits of any shape, any router over any logits.

use arbitrary::{Result, Unstructured};
use half::bf16;
use moekit_kernels::{CpuKernel, Isa, Router, Rows};
use moekit_quant::{ExpertGroups, GroupScore, RouterSpec, ScoringFunction, TopKSelection};

use crate::pick::pick;

/// Routes. The experts of a token must be different ones, in order of their weights, and depend on
/// its own logits alone.
pub fn router(data: &[u8]) {
    let mut u = Unstructured::new(data);
    let _ = match u.arbitrary() {
        Ok(true) => multiply(&mut u),
        _ => run(&mut u),
    };
}

/// Logits by any instruction set, from rows that begin anywhere: near plain sums in double
/// precision, and the same for a token alone.
fn multiply(u: &mut Unstructured<'_>) -> Result<()> {
    let kernel = kernel(u)?;
    let hidden_size = u.int_in_range(1..=70)?;
    let (num_tokens, num_experts) = (u.int_in_range(0..=19)?, u.int_in_range(0..=19)?);
    let offset = u.int_in_range(0..=3)?;
    let noise = u.arbitrary::<[i8; 11]>()?;
    let values = |len: usize, scale: f32| -> Vec<bf16> {
        let value = |i: usize| f32::from(noise[(i * i + i / 5) % noise.len()]) * scale;
        (0..len).map(|i| bf16::from_f32(value(i))).collect()
    };
    let hidden = values(offset + num_tokens * hidden_size, 1.0 / 64.0);
    let weight = values(offset + num_experts * hidden_size, 1.0 / 32.0);
    let single = |values: &[bf16]| -> Vec<f32> { values.iter().map(|v| v.to_f32()).collect() };
    let (hidden_f32, weight_f32) = (single(&hidden), single(&weight));
    let (hidden_f32, weight_f32) = (&hidden_f32[offset..], &weight_f32[offset..]);
    let weight = match u.arbitrary()? {
        true => Rows::Bf16(&weight[offset..]),
        false => Rows::F32(weight_f32),
    };
    let is_half: bool = u.arbitrary()?;
    let rows = |from: usize, to: usize| match is_half {
        true => Rows::Bf16(&hidden[offset..][from..to]),
        false => Rows::F32(&hidden_f32[from..to]),
    };
    let bias: Option<Vec<f32>> = match u.arbitrary()? {
        true => Some((0..num_experts).map(|e| e as f32 / 8.0).collect()),
        false => None,
    };
    let logits = |from: usize, to: usize| {
        let rows = rows(from * hidden_size, to * hidden_size);
        let logits = kernel.gate_logits(rows, hidden_size, weight, bias.as_deref());
        logits.expect("lengths agree")
    };
    let all = logits(0, num_tokens);
    assert_eq!(all.len(), num_tokens * num_experts);
    for token in 0..num_tokens {
        let own = &all[token * num_experts..(token + 1) * num_experts];
        assert_eq!(bits(own), bits(&logits(token, token + 1)));
        let x = &hidden_f32[token * hidden_size..(token + 1) * hidden_size];
        for (expert, logit) in own.iter().enumerate() {
            let w = &weight_f32[expert * hidden_size..(expert + 1) * hidden_size];
            let products = w.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let sum: f64 = products.sum();
            let sum = sum + bias.as_ref().map_or(0.0, |bias| f64::from(bias[expert]));
            assert!((sum - f64::from(*logit)).abs() < 1e-2, "{sum} {logit}");
        }
    }
    Ok(())
}

/// A kernel of any instruction set that this machine has.
pub(crate) fn kernel(u: &mut Unstructured<'_>) -> Result<CpuKernel> {
    let isa = pick(u, &Isa::available())?;
    Ok(CpuKernel::default().with_isa(isa).expect("it is available"))
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let mut spec = RouterSpec::new("gate.weight");
    spec.scoring = pick(
        u,
        &[
            ScoringFunction::Softmax,
            ScoringFunction::Sigmoid,
            ScoringFunction::SqrtSoftplus,
        ],
    )?;
    spec.selection = match u.int_in_range(0..=3)? {
        0 => TopKSelection::TopKThenScores,
        1 => TopKSelection::SparseMixer {
            epsilon: pick(u, &[0.01, 0.0, 1e9, f32::NAN, -1.0])?,
        },
        _ => TopKSelection::ScoresThenTopK,
    };
    spec.renormalize = u.arbitrary()?;
    spec.routed_scaling_factor = pick(u, &[1.0, 2.5, 0.0, f32::INFINITY])?;
    if u.arbitrary()? {
        let score = pick(u, &[GroupScore::Max, GroupScore::Top2Sum])?;
        let (groups, kept) = (u.int_in_range(0..=9)?, u.int_in_range(0..=9)?);
        spec.groups = Some(ExpertGroups::new(groups, kept, score));
    }
    let (num_experts, top_k) = (u.int_in_range(0..=33)?, u.int_in_range(0..=9)?);
    let Ok(router) = Router::new(&spec, num_experts, top_k) else {
        return Ok(());
    };
    let num_tokens = u.int_in_range(0..=3)?;
    let bias = match u.arbitrary()? {
        true => Some(logits(u, num_experts)?),
        false => None,
    };
    let logits = logits(u, num_tokens * num_experts)?;
    let kernel = kernel(u)?;
    let routed = router.route(&kernel, &logits, bias.as_deref());
    let routed = routed.expect("lengths agree");
    assert!(router.route(&kernel, &logits, Some(&[])).is_err());
    let rows = routed
        .topk_ids
        .chunks(top_k)
        .zip(routed.topk_weights.chunks(top_k));
    for (token, (ids, weights)) in rows.enumerate() {
        let mut sorted = ids.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(sorted.len(), top_k, "an expert twice in {ids:?}");
        assert!(
            sorted
                .iter()
                .all(|&id| (0..num_experts as i64).contains(&id))
        );
        if weights.iter().all(|w| w.is_finite()) {
            assert!(weights.is_sorted_by(|a, b| a >= b), "{weights:?}");
        }
        let own = &logits[token * num_experts..(token + 1) * num_experts];
        let alone = router
            .route(&kernel, own, bias.as_deref())
            .expect("lengths agree");
        assert_eq!(alone.topk_ids, ids);
        assert_eq!(bits(&alone.topk_weights), bits(weights));
    }
    Ok(())
}

fn logits(u: &mut Unstructured<'_>, len: usize) -> Result<Vec<f32>> {
    let special = [
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        -0.0,
        f32::MAX,
        f32::MIN,
    ];
    (0..len)
        .map(|_| match u.int_in_range(0..=15)? {
            0 => pick(u, &special),
            1 => u.arbitrary(),
            // Few values, so that there are ties.
            _ => Ok(f32::from(u.arbitrary::<i8>()? / 16)),
        })
        .collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
    values.iter().map(bits).collect()
}
