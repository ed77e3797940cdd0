use super::score::softmax;
use super::select::top_k;

/// PhiMoE's sparsemixer, see [`TopKSelection::SparseMixer`](moekit_quant::TopKSelection).
///
/// # Arguments
///
/// - `scratch` - any contents; comes back as garbage.
pub(super) fn sparse_mixer(
    logits: &[f32],
    epsilon: f32,
    k: usize,
    scratch: &mut Vec<f32>,
    pairs: &mut Vec<(usize, f32)>,
) {
    for _ in 0..k {
        let mut best = Vec::with_capacity(1);
        let free = (0..logits.len()).filter(|e| pairs.iter().all(|(taken, _)| taken != e));
        top_k(logits, free, 1, &mut best);
        let Some(&best) = best.first() else { return };
        let max = logits[best];
        scratch.clear();
        scratch.extend(logits.iter().map(|&l| {
            let far = (max - l) / l.abs().max(max) > 2.0 * epsilon;
            if far { f32::NEG_INFINITY } else { l }
        }));
        for &(taken, _) in pairs.iter() {
            scratch[taken] = f32::NEG_INFINITY;
        }
        softmax(scratch);
        pairs.push((best, scratch[best]));
    }
}
