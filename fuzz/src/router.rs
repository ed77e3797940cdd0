//! The gate: any router over any logits.

use arbitrary::{Result, Unstructured};
use moekit_kernels::{CpuKernel, Router};
use moekit_quant::{ExpertGroups, GroupScore, RouterSpec, ScoringFunction, TopKSelection};

use crate::pick::pick;

/// Routes. The experts of a token must be different ones, in order of their weights, and depend on
/// its own logits alone.
pub fn router(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
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
    let kernel = CpuKernel::default();
    let routed = router
        .route(&kernel, &logits, bias.as_deref())
        .expect("lengths agree");
    assert!(
        router
            .route(&kernel, &logits[..logits.len() / 2 + 1 - 1], Some(&[]))
            .is_err()
            || num_tokens == 0
    );
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
