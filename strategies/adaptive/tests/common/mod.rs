//! Seeded instances and what is measured on their plans.

#![allow(dead_code, reason = "each test file uses a part")]

use moekit_placement::bound::load_bound;
use moekit_placement::{
    ExpertLoad, ModelPlacement, Placement, PlacementChange, PlacementRequest, Topology, balance,
};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Gamma, StandardNormal};

pub(crate) const EXPERTS: usize = 256;

pub(crate) fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// `exp(σ z)`.
pub(crate) fn lognormal(sigma: f64, rng: &mut impl Rng) -> Vec<f64> {
    let normal = |_| -> f64 { StandardNormal.sample(rng) };
    (0..EXPERTS)
        .map(normal)
        .map(|z| (sigma * z).exp())
        .collect()
}

/// `k^-s` in random order.
pub(crate) fn zipf(s: f64, rng: &mut impl Rng) -> Vec<f64> {
    let mut keyed: Vec<(u64, f64)> = (1..=EXPERTS)
        .map(|k| (rng.random(), (k as f64).powf(-s)))
        .collect();
    keyed.sort_by_key(|&(key, _)| key);
    keyed.into_iter().map(|(_, load)| load).collect()
}

/// aiconfigurator's bounded power law, from 1 to 0.8 × 4096 tokens.
pub(crate) fn power_law(alpha: f64, rng: &mut impl Rng) -> Vec<f64> {
    power_law_of(alpha, 4096.0, rng)
}

/// The same with up to 0.8 × `tokens`.
pub(crate) fn power_law_of(alpha: f64, tokens: f64, rng: &mut impl Rng) -> Vec<f64> {
    let power = |x: f64| x.powf(1.0 - alpha);
    let (low, high) = (power(1.0), power(0.8 * tokens));
    let sample = |_| (low + (high - low) * rng.random::<f64>()).powf(1.0 / (1.0 - alpha));
    (0..EXPERTS).map(sample).collect()
}

/// The log-load of every expert, mixed with noise of the same spread.
pub(crate) fn drifted(load: &[f64], drift: f64, rng: &mut impl Rng) -> Vec<f64> {
    let logs: Vec<f64> = load.iter().map(|l| l.ln()).collect();
    let mean = logs.iter().sum::<f64>() / logs.len() as f64;
    let spread = (logs.iter().map(|l| (l - mean).powi(2)).sum::<f64>() / logs.len() as f64).sqrt();
    let keep = 1.0 - drift;
    let fresh = spread * (1.0 - keep * keep).sqrt();
    let mix = |log: &f64| -> f64 {
        let z: f64 = StandardNormal.sample(rng);
        (mean + keep * (log - mean) + fresh * z).exp()
    };
    logs.iter().map(mix).collect()
}

/// The counts of one step: tokens drawn from a Dirichlet distribution around the load.
pub(crate) fn step(
    load: &[f64],
    tokens: usize,
    concentration: f64,
    rng: &mut impl Rng,
) -> Vec<u64> {
    let total: f64 = load.iter().sum();
    let mut sum = 0.0;
    let ends: Vec<f64> = load
        .iter()
        .map(|l| {
            let gamma = Gamma::new(concentration * l / total, 1.0).unwrap();
            sum += gamma.sample(rng);
            sum
        })
        .collect();
    let mut counts = vec![0; load.len()];
    for _ in 0..tokens {
        let at = rng.random::<f64>() * sum;
        counts[ends.partition_point(|&end| end <= at).min(load.len() - 1)] += 1;
    }
    counts
}

pub(crate) fn rows(rows: &[Vec<f64>]) -> ExpertLoad {
    ExpertLoad::from_rows(rows).unwrap()
}

pub(crate) fn request<'a>(
    load: &'a ExpertLoad,
    topology: &'a Topology,
    slots: usize,
) -> PlacementRequest<'a> {
    PlacementRequest::new(load.num_layers(), load.num_experts(), topology)
        .unwrap()
        .with_num_slots(slots)
        .unwrap()
        .with_load(load)
        .unwrap()
}

pub(crate) fn largest(placement: &Placement, load: &[f64]) -> f64 {
    let loads = balance::rank_loads(placement, load).unwrap();
    loads.into_iter().fold(0.0, f64::max)
}

/// The smallest part of the bound that a layer reaches.
pub(crate) fn of_bound(
    plan: &ModelPlacement,
    request: &PlacementRequest<'_>,
    load: &ExpertLoad,
) -> f64 {
    let layers = plan.layers().iter().zip(load.layers());
    let part = |(layer, load): (&Placement, &[f64])| {
        load_bound(load, request.slots_per_rank()).unwrap().max_load / largest(layer, load)
    };
    layers.map(part).fold(1.0, f64::min)
}

pub(crate) fn duplicates(plan: &ModelPlacement) -> usize {
    plan.layers()
        .iter()
        .map(Placement::duplicates_on_a_rank)
        .sum()
}

pub(crate) fn moved(from: &ModelPlacement, to: &ModelPlacement) -> usize {
    let layers = from.layers().iter().zip(to.layers());
    layers
        .map(|(a, b)| PlacementChange::between(a, b).slots_received())
        .sum()
}
