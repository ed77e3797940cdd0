//! Strategies against each other.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_placement::{
    ExpertLoad, ModelPlacement, PlacementRequest, PlacementStrategy, Topology, balance,
};
use moekit_strategy_adaptive::Adaptive;
use moekit_strategy_eplb::Eplb;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Whole numbers of several magnitudes, with ties and zeros.
fn load(layers: usize, experts: usize, rng: &mut impl Rng) -> ExpertLoad {
    let value = |_| f64::from(rng.random_range(0u32..8) << rng.random_range(0..10));
    ExpertLoad::new(layers, experts, (0..layers * experts).map(value).collect()).unwrap()
}

fn largest(plan: &ModelPlacement, load: &ExpertLoad) -> Vec<f64> {
    let balance = balance::model_balance(plan, load).unwrap();
    balance.layers.iter().map(|layer| layer.max_load).collect()
}

/// Plans by both; the layers in which `adaptive` has the larger largest load.
fn layers_below(request: &PlacementRequest<'_>, load: &ExpertLoad) -> usize {
    let adaptive = largest(&Adaptive::default().place(request).unwrap(), load);
    let eplb = largest(&Eplb::default().place(request).unwrap(), load);
    // Sums of the same loads in another order differ by rounding.
    adaptive
        .iter()
        .zip(&eplb)
        .filter(|(a, e)| **a > **e * (1.0 + 1e-9))
        .count()
}

#[test]
fn adaptive_is_never_below_eplb() {
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for _ in 0..200 {
        let (ranks, experts) = (rng.random_range(1..10), rng.random_range(1..25));
        let load = load(3, experts, &mut rng);
        let slots = ranks * (experts.div_ceil(ranks) + rng.random_range(0..4));
        let topology = Topology::new(ranks).unwrap();
        let request = PlacementRequest::new(3, experts, &topology)
            .unwrap()
            .with_num_slots(slots)
            .unwrap()
            .with_load(&load)
            .unwrap();
        assert_eq!(
            layers_below(&request, &load),
            0,
            "{slots} slots on {ranks} ranks, {load:?}"
        );
    }
}

#[test]
fn nor_with_nodes_and_expert_groups() {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    for nodes in [2, 4] {
        let topology = Topology::new(16).unwrap().with_nodes(nodes).unwrap();
        let load = load(8, 64, &mut rng);
        let request = PlacementRequest::new(8, 64, &topology)
            .unwrap()
            .with_num_slots(80)
            .unwrap()
            .with_expert_groups(8)
            .unwrap()
            .with_load(&load)
            .unwrap();
        assert_eq!(layers_below(&request, &load), 0);
    }
}
