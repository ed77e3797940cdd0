//! Seeded expert loads for tests and measurements: the published distributions and the R1-MT profile.

use rand::{RngExt, SeedableRng, seq::SliceRandom};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Binomial, Distribution, Gamma, StandardNormal};

/// A distribution of the load of one layer over its experts.
#[derive(Clone, Copy, Debug)]
pub enum Profile {
    /// exp(sigma z), z standard normal.
    LogNormal(f64),
    /// rank^-s, shuffled.
    Zipf(f64),
    /// Power law with exponent a between 1 and 0.8 times the tokens, as in aiconfigurator.
    PowerLaw(f64, f64),
    /// One expert with this share, the others equal.
    One(f64),
}

impl Profile {
    /// Loads of `experts` experts.
    pub fn draw(self, experts: usize, rng: &mut ChaCha8Rng) -> Vec<f64> {
        match self {
            Profile::LogNormal(sigma) => (0..experts)
                .map(|_| (sigma * rng.sample::<f64, _>(StandardNormal)).exp())
                .collect(),
            Profile::Zipf(s) => {
                let mut loads: Vec<f64> = (1..=experts).map(|i| (i as f64).powf(-s)).collect();
                loads.shuffle(rng);
                loads
            }
            Profile::PowerLaw(a, tokens) => {
                let top = (0.8 * tokens).powf(1.0 - a);
                (0..experts)
                    .map(|_| ((top - 1.0) * rng.random::<f64>() + 1.0).powf(1.0 / (1.0 - a)))
                    .collect()
            }
            Profile::One(share) => {
                let rest = (1.0 - share) / (experts - 1) as f64;
                let mut loads = vec![rest; experts];
                loads[rng.random_range(0..experts)] = share;
                loads
            }
        }
    }
}

/// A generator for one seed.
pub fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// The concentration of the per-step Dirichlet noise of the R1-MT profile.
pub const R1_MT_KAPPA: f64 = 13_000.0;
/// The lognormal spread of the R1-MT profile.
pub const R1_MT_SIGMA: f64 = 0.985;

/// Counts of one step: p ~ Dirichlet(kappa w), counts ~ Multinomial(tokens, p).
pub fn step_counts(loads: &[f64], kappa: f64, tokens: u64, rng: &mut ChaCha8Rng) -> Vec<u32> {
    let total: f64 = loads.iter().sum();
    let mut p: Vec<f64> = loads
        .iter()
        .map(|w| Gamma::new((kappa * w / total).max(1e-9), 1.0).map_or(0.0, |g| g.sample(rng)))
        .collect();
    let sum: f64 = p.iter().sum();
    p.iter_mut().for_each(|x| *x /= sum);
    let (mut left, mut mass) = (tokens, 1.0f64);
    let mut counts: Vec<u32> = p
        .iter()
        .map(|&x| {
            let share = (x / mass).clamp(0.0, 1.0);
            let n = Binomial::new(left, share).map_or(0, |b| b.sample(rng));
            left -= n;
            mass = (mass - x).max(1e-300);
            n as u32
        })
        .collect();
    if let Some(last) = counts.last_mut() {
        *last += left as u32;
    }
    counts
}

/// Re-mixes the share `drift` of the log-loads: ln w' = sqrt(1-d) ln w + sqrt(d) ln w2.
pub fn drift(loads: &[f64], drift: f64, rng: &mut ChaCha8Rng) -> Vec<f64> {
    let logs: Vec<f64> = loads.iter().map(|w| w.max(1e-12).ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let var = logs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / logs.len() as f64;
    logs.iter()
        .map(|x| {
            let fresh: f64 = rng.sample::<f64, _>(StandardNormal) * var.sqrt();
            (mean + (1.0 - drift).sqrt() * (x - mean) + drift.sqrt() * fresh).exp()
        })
        .collect()
}
