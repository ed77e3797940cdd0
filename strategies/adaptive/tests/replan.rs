//! What moves if a placement is in force.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use common::*;
use moekit_placement::{
    ExpertLoad, MigrationBudget, ModelPlacement, PlacementError, PlacementStrategy, Topology,
};
use moekit_routing::Rank;
use moekit_strategy_adaptive::Adaptive;

fn plan(load: &ExpertLoad, current: Option<(&ModelPlacement, MigrationBudget)>) -> ModelPlacement {
    let topology = Topology::new(32).unwrap();
    let mut request = request(load, &topology, 288);
    if let Some((current, budget)) = current {
        request = request.with_current(current, budget).unwrap();
    }
    Adaptive::default().place(&request).unwrap()
}

fn balance(plan: &ModelPlacement, load: &ExpertLoad) -> f64 {
    let topology = Topology::new(32).unwrap();
    of_bound(plan, &request(load, &topology, 288), load)
}

/// A load and what has become of it.
fn before_and_after(drift: f64, seed: u64) -> (ExpertLoad, ExpertLoad) {
    let mut rng = rng(seed);
    let before = [
        lognormal(0.8, &mut rng),
        lognormal(1.2, &mut rng),
        zipf(0.8, &mut rng),
        zipf(1.0, &mut rng),
    ];
    let after: Vec<Vec<f64>> = before
        .iter()
        .map(|load| drifted(load, drift, &mut rng))
        .collect();
    (rows(&before), rows(&after))
}

#[test]
fn a_drifted_load_needs_few_moves() {
    for drift in [0.02, 0.05] {
        let (before, after) = before_and_after(drift, 1);
        let first = plan(&before, None);
        let second = plan(&after, Some((&first, MigrationBudget::Unlimited)));
        let balance = balance(&second, &after);
        assert!(balance >= 0.98, "{balance}");
        let part = moved(&first, &second) as f64 / (4.0 * 288.0);
        assert!(part <= 0.15, "{part} of the slots at a drift of {drift}");
        assert_eq!(duplicates(&second), 0);
    }
}

/// Where a layer that gains slots gains arrivals too, as many slots in every layer may be the better way.
#[test]
fn shared_slots_are_not_worse_than_even_ones_under_a_budget() {
    let (before, after) = before_and_after(0.05, 3);
    let current = plan(&before, None);
    let topology = Topology::new(32).unwrap();
    let largest = |layer_budgets, budget| {
        let mut strategy = Adaptive::default();
        strategy.layer_budgets = layer_budgets;
        let request = request(&after, &topology, 320);
        let request = request.with_current(&current, MigrationBudget::Slots(budget));
        let plan = strategy.place(&request.unwrap()).unwrap();
        assert!(moved(&current, &plan) <= budget);
        let layers = plan.layers().iter().zip(after.layers());
        let largest = layers.map(|(layer, load)| {
            let loads = moekit_placement::balance::rank_loads(layer, load).unwrap();
            loads.into_iter().fold(0.0, f64::max)
        });
        largest.sum::<f64>()
    };
    // Each layer gains 32 slots, all of which are filled.
    for budget in [128, 160, 320] {
        let (shared, even) = (largest(true, budget), largest(false, budget));
        assert!(shared <= even, "{budget}: {shared} {even}");
    }
}

#[test]
fn a_drifted_heavy_head_moves_little() {
    let mut rng = rng(6);
    let before: Vec<Vec<f64>> = (0..8).map(|_| zipf(1.2, &mut rng)).collect();
    for drift in [0.02, 0.05] {
        let after: Vec<Vec<f64>> = before
            .iter()
            .map(|load| drifted(load, drift, &mut rng))
            .collect();
        let (before, after) = (rows(&before), rows(&after));
        let first = plan(&before, None);
        let second = plan(&after, Some((&first, MigrationBudget::Unlimited)));
        let balance = balance(&second, &after);
        assert!(balance >= 0.98, "{balance}");
        let part = moved(&first, &second) as f64 / (8.0 * 288.0);
        assert!(part <= 0.15, "{part} of the slots at a drift of {drift}");
        assert_eq!(duplicates(&second), 0);
    }
}

#[test]
fn what_is_good_enough_stays() {
    let (before, _) = before_and_after(0.0, 2);
    let first = plan(&before, None);
    assert_eq!(
        plan(&before, Some((&first, MigrationBudget::Unlimited))),
        first
    );
}

#[test]
fn a_budget_is_kept_and_well_spent() {
    let (before, after) = before_and_after(0.05, 3);
    let first = plan(&before, None);
    let sum = |plan: &ModelPlacement| -> f64 {
        plan.layers()
            .iter()
            .zip(after.layers())
            .map(|(p, l)| largest(p, l) / l.iter().sum::<f64>())
            .sum()
    };
    let all = plan(&after, Some((&first, MigrationBudget::Unlimited)));
    let mut last = sum(&first);
    let reachable = last - sum(&all);
    for (budget, part) in [(0, 0.0), (4, 0.05), (23, 0.3), (60, 0.6)] {
        let cut = plan(&after, Some((&first, MigrationBudget::Slots(budget))));
        assert!(moved(&first, &cut) <= budget);
        let gained = sum(&first) - sum(&cut);
        assert!(
            gained >= part * reachable,
            "{budget} slots: {gained} of {reachable}"
        );
        assert!(sum(&cut) <= last + 1e-12);
        last = sum(&cut);
    }
}

#[test]
fn a_lost_rank_costs_the_moves_of_its_own_experts() {
    let (load, _) = before_and_after(0.0, 4);
    let first = plan(&load, None);
    let topology = Topology::new(32).unwrap();
    let lost = Rank::new(7);
    let mut slots = vec![9; 32];
    slots[7] = 0;
    let request = request(&load, &topology, 288)
        .with_slots_per_rank(slots)
        .unwrap()
        .with_current(&first, MigrationBudget::Unlimited)
        .unwrap();
    let strategy: &dyn PlacementStrategy = &Adaptive::default();
    let next = strategy.plan(&request).unwrap();
    let orphans = |layer: &moekit_placement::Placement| {
        let counts = layer.replica_counts();
        layer
            .experts_of(lost)
            .unwrap()
            .iter()
            .filter(|e| counts[e.index()] == 1)
            .count()
    };
    assert_eq!(
        moved(&first, &next),
        first.layers().iter().map(orphans).sum::<usize>()
    );

    let request = request
        .with_current(&first, MigrationBudget::Slots(1))
        .unwrap();
    let error = Adaptive::default().place(&request).unwrap_err();
    assert!(
        matches!(error, PlacementError::BudgetTooSmall { budget: 1, .. }),
        "{error}"
    );
}

#[test]
fn new_ranks_are_filled() {
    let (load, _) = before_and_after(0.0, 5);
    let first = plan(&load, None);
    let topology = Topology::new(34).unwrap();
    let request = request(&load, &topology, 306)
        .with_current(&first, MigrationBudget::Unlimited)
        .unwrap();
    let next = Adaptive::default().place(&request).unwrap();
    assert_eq!(duplicates(&next), 0);
    let reached = of_bound(&next, &request, &load);
    assert!(reached >= 0.98, "{reached}");
}
