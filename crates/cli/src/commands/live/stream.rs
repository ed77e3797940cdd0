//! Tokens whose experts follow a workload.
//!
//! The gate's logits cannot be made to follow a profile from outside, so its *choice* is replaced:
//! the ids of each token are dealt from the step's counts, and the weights are the softmax of the
//! gate's own logits over them. Everything behind the choice is the layer as it is.

use std::sync::{Mutex, PoisonError};

use moekit::burn::tensor::{Device, Tensor, TensorData};
use moekit::fused_moe::{CustomRouting, FusedMoeError, Rows};
use moekit::kernels::Routed;
use moekit::placement::LoadTrace;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

/// The tokens of all ranks in every step.
#[derive(Debug)]
pub(super) struct Stream {
    trace: LoadTrace,
    tokens: usize,
    top_k: usize,
    /// `[tokens, hidden_size]`, taken in another order in every step.
    rows: Vec<f32>,
    hidden_size: usize,
}

impl Stream {
    /// # Arguments
    ///
    /// - `trace` - routed tokens per step, layer and expert: `tokens * top_k` in each layer.
    pub(super) fn new(trace: LoadTrace, sizes: [usize; 3], seed: u64) -> Self {
        let [tokens, top_k, hidden_size] = sizes;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(u64::MAX);
        let rows = (0..tokens * hidden_size).map(|_| StandardNormal.sample(&mut rng));
        Self {
            rows: rows.collect(),
            trace,
            tokens,
            top_k,
            hidden_size,
        }
    }

    /// The tokens of a rank, dealt like cards, and the experts of each, `[own tokens, top_k]`.
    pub(super) fn batch(
        &self,
        step: u64,
        layer: usize,
        rank: usize,
        num_ranks: usize,
    ) -> (Tensor<2>, Vec<i64>) {
        let steps = self.trace.steps();
        let counts = steps[step as usize % steps.len()]
            .layer(layer)
            .unwrap_or_default();
        let all = expand(counts, self.tokens);
        let own: Vec<usize> = (rank..self.tokens).step_by(num_ranks).collect();
        let ids = own.iter().flat_map(|&token| {
            let all = &all;
            (0..self.top_k).map(move |j| all.get(token + j * self.tokens).copied().unwrap_or(-1))
        });
        let ids = ids.collect();
        let width = self.hidden_size;
        let rows = own.iter().flat_map(|&token| {
            let row = (token + 7 * step as usize) % self.tokens;
            self.rows[row * width..(row + 1) * width].iter().copied()
        });
        let data = TensorData::new(rows.collect::<Vec<f32>>(), [own.len(), width]);
        (Tensor::from_data(data, &Device::flex()), ids)
    }
}

/// The expert of each routed token, ascending. No expert gets more than all tokens, so that those
/// `tokens` apart differ: what is beyond goes to the next experts.
fn expand(counts: &[f64], tokens: usize) -> Vec<i64> {
    let mut counts: Vec<usize> = counts.iter().map(|&count| count as usize).collect();
    let mut beyond = 0;
    for _ in 0..2 {
        for count in &mut counts {
            let wanted = *count + beyond;
            *count = wanted.min(tokens);
            beyond = wanted - *count;
        }
    }
    let ids = (0_i64..).zip(counts);
    ids.flat_map(|(id, count)| std::iter::repeat_n(id, count))
        .collect()
}

/// A gate whose choice is dictated, batch by batch.
#[derive(Debug, Default)]
pub(super) struct Scripted(Mutex<Vec<i64>>);

impl Scripted {
    /// The experts of the next batch, `[num_tokens, top_k]`.
    pub(super) fn set(&self, ids: Vec<i64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = ids;
    }
}

impl CustomRouting for Scripted {
    fn route(
        &self,
        _: Rows<'_>,
        logits: &[f32],
        num_experts: usize,
        top_k: usize,
    ) -> Result<Routed, FusedMoeError> {
        let ids = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if ids.len() * num_experts != logits.len() * top_k {
            return Err(FusedMoeError::Config(format!(
                "the stream has {} ids for {} tokens of top-{top_k}",
                ids.len(),
                logits.len() / num_experts.max(1)
            )));
        }
        let mut routed = Routed::new(Vec::with_capacity(ids.len()), Vec::with_capacity(ids.len()));
        for (ids, logits) in ids
            .chunks_exact(top_k)
            .zip(logits.chunks_exact(num_experts))
        {
            let logit = |id: i64| {
                let at = usize::try_from(id).ok();
                at.and_then(|at| logits.get(at))
                    .copied()
                    .unwrap_or(f32::NEG_INFINITY)
            };
            let largest = ids
                .iter()
                .fold(f32::NEG_INFINITY, |max, &id| max.max(logit(id)));
            let exponent = |&id: &i64| (id, (logit(id) - largest).exp());
            let mut pairs: Vec<(i64, f32)> = ids.iter().map(exponent).collect();
            pairs.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            let sum: f32 = pairs.iter().map(|pair| pair.1).sum();
            for (id, weight) in pairs {
                routed.topk_ids.push(id);
                routed.topk_weights.push(weight / sum);
            }
        }
        Ok(routed)
    }
}

#[cfg(test)]
mod tests {
    use moekit::placement::ExpertLoad;

    use super::*;

    #[test]
    fn batches_have_the_counts_of_the_trace() {
        let counts = [9.0, 0.0, 3.0, 4.0];
        let trace = LoadTrace::new(vec![ExpertLoad::from_rows(&[counts]).unwrap()]).unwrap();
        let stream = Stream::new(trace, [8, 2, 3], 1);
        let mut seen = [0; 4];
        for rank in 0..3 {
            let (rows, ids) = stream.batch(5, 0, rank, 3);
            assert_eq!(ids.len(), rows.dims()[0] * 2);
            for pair in ids.chunks(2) {
                assert_ne!(pair[0], pair[1], "distinct experts");
                pair.iter().for_each(|&id| seen[id as usize] += 1);
            }
        }
        // No more than 8 tokens can choose expert 0: the ninth goes to expert 1.
        assert_eq!(seen, [8, 1, 3, 4]);
    }
}
