//! Random migrations.

use moekit_routing::{Placement, Rank, Topology};
use proptest::prelude::*;

use crate::migration::group::Group;
use crate::migration::{LayerMigration, MigrationPlanner};

/// From one placement to the next, possibly over other ranks.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) topology: Topology,
    pub(super) current: Placement,
    pub(super) next: Placement,
    pub(super) lost: Vec<Rank>,
}

impl Scenario {
    pub(super) fn planner(&self) -> MigrationPlanner<'_> {
        MigrationPlanner::new(&self.topology)
            .with_lost_ranks(&self.lost)
            .unwrap()
    }

    pub(super) fn plan(&self) -> LayerMigration {
        self.planner().layer(&self.current, &self.next).unwrap()
    }

    pub(super) fn widen(&self, placement: &Placement) -> Placement {
        Group::new(&self.topology, &[]).widen(placement).unwrap()
    }

    /// Pairs of a living rank and an expert that it must get.
    pub(super) fn arrivals(&self) -> usize {
        (0..self.next.num_ranks())
            .map(Rank::new)
            .filter(|rank| !self.lost.contains(rank))
            .map(|rank| {
                let held = self.current.experts_of(rank).unwrap_or_default();
                let mut missing = self.next.experts_of(rank).unwrap().to_vec();
                missing.sort_unstable();
                missing.dedup();
                missing.retain(|e| !held.contains(e));
                missing.len()
            })
            .sum()
    }
}

/// A placement of `experts` on some of `ranks`, with uneven slots and duplicates.
fn placement(experts: usize, ranks: Vec<usize>) -> impl Strategy<Value = Placement> {
    let slots = prop::collection::vec(0..experts, 0..8)
        .prop_map(move |extra| (0..experts).chain(extra).collect::<Vec<_>>())
        .prop_shuffle();
    let owners = prop::collection::vec(any::<prop::sample::Index>(), experts + 8);
    (slots, owners).prop_map(move |(slots, owners)| {
        let mut held = vec![Vec::new(); ranks.iter().max().unwrap() + 1];
        for (expert, owner) in slots.into_iter().zip(owners) {
            held[*owner.get(&ranks)].push(expert);
        }
        Placement::from_ranks(experts, &held).unwrap()
    })
}

/// Ranks come, go and are lost; slots are uneven.
pub(super) fn anything() -> impl Strategy<Value = Scenario> {
    (1_usize..10, 1_usize..7, 1_usize..7, 0_usize..2, 1_usize..4)
        .prop_flat_map(|(experts, before, after, idle, nodes)| {
            let ranks = before.max(after) + idle;
            let topology = Topology::new(ranks)
                .and_then(|t| t.with_nodes(nodes.min(ranks)))
                .unwrap();
            let lost = prop::collection::vec(prop::bool::weighted(0.15), ranks);
            (
                Just(topology),
                placement(experts, (0..before).collect()),
                lost,
                Just((experts, after)),
            )
        })
        .prop_flat_map(|(topology, current, lost, (experts, after))| {
            let living: Vec<usize> = (0..after).filter(|&r| !lost[r]).collect();
            // Somebody must be left.
            let lost: Vec<usize> = match living.is_empty() {
                true => Vec::new(),
                false => (0..lost.len()).filter(|&r| lost[r]).collect(),
            };
            let living = match living.is_empty() {
                true => (0..after).collect(),
                false => living,
            };
            let lost: Vec<Rank> = lost.into_iter().map(Rank::new).collect();
            (Just((topology, current, lost)), placement(experts, living))
        })
        .prop_map(|((topology, current, lost), next)| Scenario {
            topology,
            current,
            next,
            lost,
        })
}

/// As many slots as experts, the same on every rank: only cycles help.
pub(super) fn permutation() -> impl Strategy<Value = Scenario> {
    (1_usize..7, 1_usize..5)
        .prop_flat_map(|(ranks, slots)| {
            let experts: Vec<usize> = (0..ranks * slots).collect();
            (Just((ranks, slots)), Just(experts).prop_shuffle())
        })
        .prop_map(|((ranks, slots), next)| {
            let offsets: Vec<usize> = (0..=ranks).map(|r| r * slots).collect();
            let experts = ranks * slots;
            Scenario {
                topology: Topology::new(ranks).unwrap(),
                current: Placement::new(experts, (0..experts).collect(), offsets.clone()).unwrap(),
                next: Placement::new(experts, next, offsets).unwrap(),
                lost: Vec::new(),
            }
        })
}

/// Either.
pub(super) fn scenario() -> impl Strategy<Value = Scenario> {
    prop_oneof![3 => anything(), 1 => permutation()]
}
