//! Draws from the distributions that a workload needs.

use rand::{Rng, RngExt};
use rand_distr::{Binomial, Distribution, Gamma, StandardNormal};

pub(super) fn uniform(rng: &mut impl Rng) -> f64 {
    rng.random()
}

/// An index below `n`.
pub(super) fn uniform_index(rng: &mut impl Rng, n: usize) -> usize {
    rng.random_range(0..n)
}

pub(super) fn normals(rng: &mut impl Rng, n: usize) -> Vec<f64> {
    (0..n).map(|_| StandardNormal.sample(rng)).collect()
}

/// Shares that scatter around `shares`: gamma variates of shape `concentration * share`,
/// normalized.
pub(super) fn dirichlet(rng: &mut impl Rng, shares: &[f64], concentration: f64) -> Vec<f64> {
    let draws: Vec<f64> = shares
        .iter()
        .map(|share| Gamma::new(concentration * share, 1.0).map_or(0.0, |gamma| gamma.sample(rng)))
        .collect();
    let sum: f64 = draws.iter().sum();
    // A concentration so small that every variate underflows leaves the shares as they are.
    if sum > 0.0 && sum.is_finite() {
        draws.into_iter().map(|draw| draw / sum).collect()
    } else {
        shares.to_vec()
    }
}

/// How `n` tokens fall on the experts, one binomial after the other: the counts sum to `n`.
pub(super) fn multinomial(rng: &mut impl Rng, n: u64, shares: &[f64]) -> Vec<u64> {
    // What is left from each expert on, summed from the end: of the last expert with a share,
    // exactly that share, so that it takes all tokens that are left.
    let mut left: Vec<f64> = shares
        .iter()
        .rev()
        .scan(0.0, |sum, share| {
            *sum += share;
            Some(*sum)
        })
        .collect();
    left.reverse();
    let mut remaining = n;
    shares
        .iter()
        .zip(left)
        .map(|(&share, left)| {
            let probability = if left > 0.0 {
                (share / left).min(1.0)
            } else {
                0.0
            };
            let count = Binomial::new(remaining, probability).map_or(0, |b| b.sample(rng));
            remaining -= count.min(remaining);
            count
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn mean_and_variance(draws: &[f64]) -> (f64, f64) {
        let n = draws.len() as f64;
        let mean = draws.iter().sum::<f64>() / n;
        (
            mean,
            draws.iter().map(|d| (d - mean).powi(2)).sum::<f64>() / n,
        )
    }

    #[test]
    fn multinomial_has_its_moments() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let shares = [0.2, 0.0, 0.5, 0.3];
        let draws: Vec<_> = (0..4000)
            .map(|_| multinomial(&mut rng, 1000, &shares))
            .collect();
        for (e, share) in shares.iter().enumerate() {
            let counts: Vec<f64> = draws.iter().map(|d| d[e] as f64).collect();
            let (mean, variance) = mean_and_variance(&counts);
            let (expected, spread) = (1000.0 * share, 1000.0 * share * (1.0 - share));
            assert!((mean - expected).abs() <= 1.0, "{mean} {expected}");
            assert!(
                (variance - spread).abs() <= 0.1 * spread,
                "{variance} {spread}"
            );
        }
    }

    #[test]
    fn dirichlet_has_its_moments() {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let draws: Vec<_> = (0..4000)
            .map(|_| dirichlet(&mut rng, &[0.1, 0.9], 50.0))
            .collect();
        let first: Vec<f64> = draws.iter().map(|d| d[0]).collect();
        let (mean, variance) = mean_and_variance(&first);
        let spread = 0.1 * 0.9 / 51.0;
        assert!((mean - 0.1).abs() < 0.002, "{mean}");
        assert!(
            (variance - spread).abs() < 0.1 * spread,
            "{variance} {spread}"
        );
        assert_eq!(dirichlet(&mut rng, &[0.5, 0.5], 1e-300), [0.5, 0.5]);
    }

    proptest! {
        #[test]
        fn counts_sum_to_the_tokens(
            shares in prop::collection::vec(prop_oneof![Just(0.0), 0.0..1.0, 0.0..1e-12], 1..40),
            n in 0u64..100_000,
            seed: u64,
        ) {
            prop_assume!(shares.iter().sum::<f64>() > 0.0);
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            let counts = multinomial(&mut rng, n, &shares);
            prop_assert_eq!(counts.iter().sum::<u64>(), n);
            for (count, share) in counts.iter().zip(&shares) {
                prop_assert!(*share > 0.0 || *count == 0);
            }
        }
    }
}
