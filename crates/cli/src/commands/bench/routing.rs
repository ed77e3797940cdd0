//! Random tokens and the experts that they go to.

use half::bf16;
use moekit::eval::workload::{Profile, Workload};
use moekit::kernels::{ExpertBatch, KernelError, Rows};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::ActivationDtype;
use super::shape::Shape;
use crate::error::Result;

/// Tokens of a draw from which the popularity of experts is taken.
const DRAWN: u64 = 1 << 40;

/// Tokens in a row that may have no expert of this rank before one is given an expert of it: where a
/// rank is hardly ever chosen, waiting would take for ever.
const MOST_MISSES: usize = 1000;

/// Activations in the caller's own precision.
pub(super) enum Hidden {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Hidden {
    /// Normal values, `[num_tokens, hidden_size]`.
    fn random(len: usize, act: ActivationDtype, rng: &mut impl Rng) -> Self {
        let values = StandardNormal.sample_iter(rng).take(len);
        match act {
            ActivationDtype::F32 => Self::F32(values.collect()),
            ActivationDtype::Bf16 => Self::Bf16(values.map(bf16::from_f32).collect()),
        }
    }

    pub(super) fn rows(&self) -> Rows<'_> {
        match self {
            Self::F32(values) => Rows::F32(values),
            Self::Bf16(values) => Rows::Bf16(values),
        }
    }
}

/// Tokens with their local experts.
pub(super) struct Tokens {
    pub(super) hidden: Hidden,
    /// `[num_tokens, top_k]`, -1 for an expert of another rank.
    pub(super) local_ids: Vec<i64>,
    /// `[num_tokens, top_k]`
    pub(super) weights: Vec<f32>,
}

impl Tokens {
    pub(super) fn batch(&self, shape: &Shape) -> Result<ExpertBatch<'_>, KernelError> {
        let (ids, weights) = (&self.local_ids, &self.weights);
        ExpertBatch::new(
            self.hidden.rows(),
            shape.hidden_size,
            ids,
            weights,
            shape.top_k,
        )
    }

    /// Slots with an expert of this rank.
    pub(super) fn slots(&self) -> usize {
        self.local_ids.iter().filter(|id| **id >= 0).count()
    }

    /// The experts that have tokens, in order.
    pub(super) fn experts(&self) -> Vec<usize> {
        let local = self.local_ids.iter();
        let mut ids: Vec<usize> = local.filter_map(|id| usize::try_from(*id).ok()).collect();
        ids.sort_unstable();
        ids.dedup();
        ids
    }
}

/// Draws tokens that prefer some experts.
pub(super) struct TokenSource<'a> {
    shape: &'a Shape,
    act: ActivationDtype,
    /// Logarithm of each logical expert's share.
    popularity: Vec<f64>,
    rng: ChaCha8Rng,
}

impl<'a> TokenSource<'a> {
    pub(super) fn new(
        shape: &'a Shape,
        act: ActivationDtype,
        profile: Profile,
        seed: u64,
    ) -> Result<Self> {
        let workload = Workload::new(profile, shape.num_experts, 1, 1, DRAWN)?.with_seed(seed);
        let trace = workload.generate()?;
        let counts = trace.steps().first().and_then(|step| step.layer(0));
        // An expert that was never drawn stays possible: there may be no k others.
        let popularity = counts.unwrap_or(&[]).iter().map(|n| (n + 1.0).ln());
        Ok(Self {
            shape,
            act,
            popularity: popularity.collect(),
            rng: ChaCha8Rng::seed_from_u64(seed),
        })
    }

    /// Tokens that come to this rank: each has an expert here.
    pub(super) fn draw(&mut self, num_tokens: usize) -> Tokens {
        let (top_k, num_local) = (self.shape.top_k, self.shape.num_local);
        let slots = num_tokens * top_k;
        let mut local_ids = Vec::with_capacity(slots);
        let mut misses = 0;
        while local_ids.len() < slots {
            let mut experts = self.choose(0);
            if experts.iter().all(|&e| e >= num_local) {
                misses += 1;
                if misses < MOST_MISSES {
                    continue;
                }
                experts = self.choose(num_local);
            }
            misses = 0;
            let local = |e: usize| if e < num_local { e as i64 } else { -1 };
            local_ids.extend(experts.into_iter().map(local));
        }
        let weights = (0..slots).map(|_| self.rng.random_range(0.5..1.5) / top_k as f32);
        let weights = weights.collect();
        let len = num_tokens * self.shape.hidden_size;
        Tokens {
            hidden: Hidden::random(len, self.act, &mut self.rng),
            local_ids,
            weights,
        }
    }

    /// `top_k` experts without repetition, one after the other in proportion to popularity: those
    /// of the largest log-popularity plus Gumbel noise. The last gives way to the best of the first
    /// `wanted` experts if none of these is among them.
    fn choose(&mut self, wanted: usize) -> Vec<usize> {
        let gumbel = |rng: &mut ChaCha8Rng| {
            let u: f64 = rng.random_range(f64::MIN_POSITIVE..1.0);
            -(-u.ln()).ln()
        };
        let rng = &mut self.rng;
        let keys: Vec<f64> = self.popularity.iter().map(|p| p + gumbel(rng)).collect();
        let mut experts: Vec<usize> = (0..keys.len()).collect();
        experts.sort_by(|&a, &b| keys[b].total_cmp(&keys[a]).then(a.cmp(&b)));
        let top_k = self.shape.top_k;
        if let Some(best) = experts.iter().position(|&e| e < wanted) {
            experts.swap(best, best.min(top_k - 1));
        }
        experts.truncate(top_k);
        experts
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(shape: &str, tokens: usize, profile: Profile) -> (Shape, Tokens) {
        let shape: Shape = shape.parse().unwrap();
        let mut source = TokenSource::new(&shape, ActivationDtype::Bf16, profile, 3).unwrap();
        let tokens = source.draw(tokens);
        (shape, tokens)
    }

    #[test]
    fn a_token_has_different_experts() {
        let (shape, tokens) = draw("16,8,5,4", 50, Profile::R1Mt);
        for ids in tokens.local_ids.chunks(4) {
            let mut ids = ids.to_vec();
            ids.sort_unstable();
            ids.dedup();
            assert!(ids.len() == 4 && ids.iter().all(|id| (0..5).contains(id)));
        }
        assert_eq!(tokens.slots(), 200);
        assert_eq!(tokens.batch(&shape).unwrap().num_rows(), 50);
    }

    #[test]
    fn a_rank_that_is_never_chosen_gets_tokens() {
        let shape: Shape = "deepseek-v3-ep32".parse().unwrap();
        let act = ActivationDtype::Bf16;
        let mut source = TokenSource::new(&shape, act, Profile::Zipf(12.0), 3).unwrap();
        assert!(source.choose(0).iter().all(|&e| e >= shape.num_local));
        let tokens = source.draw(4);
        let per_token = tokens.local_ids.chunks(shape.top_k);
        assert_eq!(per_token.len(), 4);
        for ids in per_token {
            let local = ids.iter().filter(|id| **id >= 0);
            assert_eq!((local.count(), ids.len()), (1, shape.top_k));
        }
    }

    #[test]
    fn a_hot_expert_is_hot() {
        let share = |profile| {
            let (_, tokens) = draw("4,4,16,1", 1000, profile);
            let count = |e| tokens.local_ids.iter().filter(|id| **id == e).count();
            (0..16).map(count).max().unwrap() as f64 / 1000.0
        };
        assert!((0.35..0.45).contains(&share(Profile::Hot(0.4))));
        assert!(share(Profile::Uniform) < 0.1);
    }

    #[test]
    fn every_token_of_a_rank_has_an_expert_there() {
        let (_, tokens) = draw("deepseek-v3-ep32", 40, Profile::R1Mt);
        for ids in tokens.local_ids.chunks(8) {
            assert!(ids.iter().any(|id| (0..8).contains(id)), "{ids:?}");
            assert!(ids.iter().all(|id| (-1..8).contains(id)));
        }
        assert!(tokens.slots() < 80);
    }
}
