use moekit_routing::{Placement, Rank, Topology};
use proptest::prelude::*;

use super::memory::Memory;
use super::scenario::{Scenario, anything, scenario};
use crate::balance::{LayerBalance, rank_loads};
use crate::migration::{MigrationCut, MigrationPlanner, StepBudget};
use crate::{ExpertLoad, ModelPlacement, PlacementError};

fn model(layers: &[&[&[usize]]], experts: usize) -> ModelPlacement {
    let layer = |ranks: &&[&[usize]]| Placement::from_ranks(experts, ranks).unwrap();
    ModelPlacement::new(layers.iter().map(layer).collect()).unwrap()
}

fn one(placement: &Placement) -> ModelPlacement {
    ModelPlacement::new(vec![placement.clone()]).unwrap()
}

fn load_of(values: &[f64], experts: usize) -> ExpertLoad {
    ExpertLoad::from_rows(&[&values[..experts]]).unwrap()
}

/// The cut of the first budget from `slots` on that is not too small.
fn cut(
    scenario: &Scenario,
    current: &ModelPlacement,
    load: &ExpertLoad,
    slots: usize,
) -> Result<(MigrationCut, usize), TestCaseError> {
    let planner = scenario.planner();
    let next = one(&scenario.next);
    match planner.cut(current, &next, load, StepBudget::Slots(slots)) {
        Ok(cut) => Ok((cut, slots)),
        Err(PlacementError::BudgetTooSmall { needed, budget, .. }) => {
            prop_assert_eq!(budget, slots as u64);
            prop_assert!(needed > budget);
            let needed = needed as usize;
            let below = planner.cut(current, &next, load, StepBudget::Slots(needed - 1));
            prop_assert!(below.is_err());
            let cut = planner.cut(current, &next, load, StepBudget::Slots(needed));
            Ok((cut.unwrap(), needed))
        }
        Err(other) => panic!("{other}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn cuts_keep_to_the_budget_and_come_to_an_end(
        scenario in scenario(),
        slots in 1_usize..5,
        load in prop::collection::vec(0.0_f64..9.0, 32),
    ) {
        let load = load_of(&load, scenario.current.num_logical_experts());
        let start = scenario.widen(&scenario.current);
        let mut memory = Memory::new(&scenario.topology, start, &scenario.lost);
        let mut current = one(&scenario.current);
        let (mut arrived, mut gained) = (0, 0.0);
        loop {
            let (cut, slots) = cut(&scenario, &current, &load, slots)?;
            prop_assert!(cut.slots <= slots);
            let sum = cut.first.summary();
            prop_assert_eq!(sum.same_node + sum.cross_node + sum.checkpoint_reads, cut.slots);
            prop_assert_eq!(memory.replay(&cut.first.layers[0]), Ok(()));
            prop_assert_eq!(memory.in_force(), &cut.reached.layers()[0]);
            arrived += cut.slots;
            gained += cut.gain;
            current = cut.reached;
            if cut.rest.is_empty() {
                break;
            }
            prop_assert!(cut.slots > 0, "a step without progress");
        }
        prop_assert_eq!(&current.layers()[0], &scenario.widen(&scenario.next));
        prop_assert_eq!(arrived, scenario.arrivals());
        if scenario.lost.is_empty() {
            let largest = |placement: &Placement| {
                LayerBalance::of(&rank_loads(placement, load.layer(0).unwrap()).unwrap()).max_load
            };
            let gain = largest(&scenario.current) - largest(&scenario.next);
            prop_assert!((gain - gained).abs() < 1e-9, "{} in all, {} in steps", gain, gained);
        }
    }

    #[test]
    fn the_first_choice_is_the_best(
        mut scenario in anything(),
        load in prop::collection::vec(0.0_f64..9.0, 32),
    ) {
        scenario.lost.clear();
        prop_assume!(scenario.arrivals() > 1);
        let load = load_of(&load, scenario.current.num_logical_experts());
        let alternatives = single_arrivals(&scenario);
        prop_assume!(!alternatives.is_empty());
        let (cut, _) = cut(&scenario, &one(&scenario.current), &load, 1)?;
        prop_assert_eq!(cut.slots, 1);
        let largest = |placement: &Placement| {
            LayerBalance::of(&rank_loads(placement, load.layer(0).unwrap()).unwrap()).max_load
        };
        let best = alternatives.iter().map(largest).fold(f64::INFINITY, f64::min);
        let reached = largest(&cut.reached.layers()[0]);
        prop_assert!((reached - best).abs() < 1e-9, "{} instead of {}", reached, best);
    }
}

/// Every placement that one arrival leads to, without giving up what the next one keeps.
fn single_arrivals(scenario: &Scenario) -> Vec<Placement> {
    let experts = scenario.current.num_logical_experts();
    let held: Vec<Vec<usize>> = ranks_of(&scenario.widen(&scenario.current));
    let wanted: Vec<Vec<usize>> = ranks_of(&scenario.widen(&scenario.next));
    let mut placements = Vec::new();
    for rank in 0..held.len() {
        for &expert in wanted[rank].iter().filter(|e| !held[rank].contains(e)) {
            let mut with = held.clone();
            if held[rank].len() < wanted[rank].len() {
                with[rank].push(expert);
                placements.extend(Placement::from_ranks(experts, &with));
                continue;
            }
            for slot in 0..held[rank].len() {
                let mut with = held.clone();
                with[rank][slot] = expert;
                let kept = |e: &usize| !wanted[rank].contains(e) || with[rank].contains(e);
                if held[rank].iter().all(kept) {
                    placements.extend(Placement::from_ranks(experts, &with));
                }
            }
        }
    }
    placements
}

fn ranks_of(placement: &Placement) -> Vec<Vec<usize>> {
    (0..placement.num_ranks())
        .map(|r| {
            let experts = placement.experts_of(Rank::new(r)).unwrap();
            experts.iter().map(|e| e.index()).collect()
        })
        .collect()
}

#[test]
fn layers_compete_per_byte() {
    let topology = Topology::new(2).unwrap();
    // Each layer exchanges experts 0 and 2; layer 0 gains 6, layer 1 gains 4.
    let current = model(&[&[&[0, 1], &[2, 3]], &[&[0, 1], &[2, 3]]], 4);
    let next = model(&[&[&[2, 1], &[0, 3]], &[&[2, 1], &[0, 3]]], 4);
    let load = ExpertLoad::from_rows(&[[6.0, 6.0, 0.0, 0.0], [4.0, 4.0, 0.0, 0.0]]).unwrap();
    let planner = MigrationPlanner::new(&topology);
    let reached = |planner: &MigrationPlanner<'_>, budget| {
        let cut = planner.cut(&current, &next, &load, budget).unwrap();
        let is_done = |l: usize| cut.reached.layers()[l] == next.layers()[l];
        (is_done(0), is_done(1), cut.slots, cut.bytes, cut.gain)
    };
    let slots = StepBudget::Slots;
    assert_eq!(reached(&planner, slots(3)), (true, false, 2, None, 6.0));
    assert_eq!(reached(&planner, slots(4)), (true, true, 4, None, 10.0));

    // Layer 1 weighs half as much: 4 per byte against 3.
    let planner = planner.with_layer_expert_bytes(vec![2, 1]);
    assert_eq!(reached(&planner, slots(2)), (false, true, 2, Some(2), 4.0));
    let bytes = StepBudget::Bytes;
    assert_eq!(reached(&planner, bytes(5)), (false, true, 2, Some(2), 4.0));
    assert_eq!(reached(&planner, bytes(6)), (true, true, 4, Some(6), 10.0));
}

#[test]
fn lost_experts_come_first() {
    let topology = Topology::new(3).unwrap();
    let current = model(&[&[&[0, 1], &[2, 0], &[3, 1]]], 4);
    let next = model(&[&[&[1, 2], &[0, 3], &[]]], 4);
    let load = ExpertLoad::from_rows(&[[9.0, 1.0, 1.0, 9.0]]).unwrap();
    let planner = MigrationPlanner::new(&topology)
        .with_lost_ranks(&[Rank::new(2)])
        .unwrap();
    let cut = planner
        .cut(&current, &next, &load, StepBudget::Slots(2))
        .unwrap();
    assert_eq!(cut.rest.summary().checkpoint_reads, 0);
    assert!(cut.gain < 0.0, "to serve expert 3 is load for rank 1");
}

#[test]
fn budgets_that_move_nothing_are_refused() {
    let topology = Topology::new(3).unwrap();
    let current = model(&[&[&[0], &[1], &[2]]], 3);
    let turned = model(&[&[&[2], &[0], &[1]]], 3);
    let load = ExpertLoad::from_rows(&[[1.0; 3]]).unwrap();
    let planner = MigrationPlanner::new(&topology);
    let message = |planner: &MigrationPlanner<'_>, next, budget| {
        let cut = planner.cut(&current, next, &load, budget);
        cut.unwrap_err().to_string()
    };
    let bytes = planner.clone().with_expert_bytes(100);
    let too_small = [
        (message(&planner, &turned, StepBudget::Slots(0)), "0 slots"),
        (message(&planner, &turned, StepBudget::Slots(2)), "needs 3"),
        (
            message(&bytes, &turned, StepBudget::Bytes(299)),
            "needs 300",
        ),
        (
            message(&planner, &turned, StepBudget::Bytes(299)),
            "not told",
        ),
    ];
    for (message, part) in too_small {
        assert!(message.contains(part), "{message}");
    }
    // Nothing is to arrive, so nothing is too small.
    let nothing = planner.cut(&current, &current, &load, StepBudget::Slots(0));
    assert!(nothing.unwrap().rest.is_empty());

    let other = ExpertLoad::from_rows(&[[1.0; 2]]).unwrap();
    let error = planner.cut(&current, &turned, &other, StepBudget::Slots(3));
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("experts in the load")
    );
}
