//! The stages of a layer's migration, with experts that nobody holds.

use std::collections::BTreeSet;

use moekit_placement::{
    MigrationPlanner, MigrationStage, Placement, PlacementError, Topology, placement_in_group,
};
use moekit_routing::{LogicalExpert, Rank};

/// Where a layer's migration begins and ends, over the ranks of one group.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    /// The placement in force. Slots of absent experts are only reserved.
    pub(crate) current: Placement,
    /// Experts that no rank holds.
    pub(crate) absent: BTreeSet<LogicalExpert>,
    pub(crate) target: Placement,
    pub(crate) topology: Topology,
    /// Whether absent experts are read from the checkpoint; else they stay absent.
    pub(crate) reads: bool,
}

/// One commit.
#[derive(Clone, Debug)]
pub(crate) struct Stage {
    /// Its transfers and reads; its placement is one over the ranks of the group.
    pub(crate) plan: MigrationStage,
    /// Experts that no rank holds after it.
    pub(crate) absent: BTreeSet<LogicalExpert>,
}

/// Plans the stages. Experts that nobody holds are planned as those of one more rank that is
/// lost, so that they are read from the checkpoint, never sent; or their reserved slots move
/// without anything in them.
pub(crate) fn plan(ends: &Ends, staging: usize) -> Result<Vec<Stage>, PlacementError> {
    if ends.absent.is_empty() || !ends.reads {
        let planner = MigrationPlanner::new(&ends.topology).with_staging(staging);
        let layer = planner.layer(&ends.current, &ends.target)?;
        let without_absent = |mut plan: MigrationStage| {
            for round in &mut plan.rounds {
                round.retain(|transfer| !ends.absent.contains(&transfer.expert));
            }
            plan.rounds.retain(|round| !round.is_empty());
            Stage {
                plan,
                absent: ends.absent.clone(),
            }
        };
        return Ok(layer.stages.into_iter().map(without_absent).collect());
    }
    let ranks = ends.current.num_ranks();
    let topology = Topology::new(ranks + 1)?;
    let gone = Rank::new(ranks);
    let planner = MigrationPlanner::new(&topology)
        .with_staging(staging)
        .with_lost_ranks(&[gone])?;
    let same: Vec<Rank> = (0..ranks).map(Rank::new).collect();
    let target = placement_in_group(&ends.target, &same, ranks + 1)?;
    let layer = planner.layer(&with_lost_rank(ends)?, &target)?;
    layer
        .stages
        .into_iter()
        .map(|mut plan| {
            let absent: BTreeSet<_> = plan
                .placement
                .experts_of(gone)
                .into_iter()
                .flatten()
                .copied()
                .collect();
            let held = |rank| plan.placement.experts_of(rank).unwrap_or_default().to_vec();
            let slots: Vec<_> = same.iter().map(|&rank| held(rank)).collect();
            plan.placement = with_reserved_slots(slots, &absent, &ends.target)?;
            plan.staging.pop();
            Ok(Stage { plan, absent })
        })
        .collect()
}

/// The placement in force with the absent experts on one more rank, and nowhere else.
fn with_lost_rank(ends: &Ends) -> Result<Placement, PlacementError> {
    let present = |rank: usize| -> Vec<usize> {
        let slots = ends.current.experts_of(Rank::new(rank)).unwrap_or_default();
        let held = slots.iter().filter(|e| !ends.absent.contains(e));
        held.map(|e| e.index()).collect()
    };
    let mut ranks: Vec<Vec<usize>> = (0..ends.current.num_ranks()).map(present).collect();
    ranks.push(ends.absent.iter().map(|e| e.index()).collect());
    let experts = ends.current.num_logical_experts();
    Ok(Placement::from_ranks(experts, &ranks)?)
}

/// A placement in which every absent expert has a slot, behind those that are held: on the first
/// rank that is to hold it by `wanted`, or else on the rank with the fewest slots.
pub(crate) fn with_reserved_slots(
    held: Vec<Vec<LogicalExpert>>,
    absent: &BTreeSet<LogicalExpert>,
    wanted: &Placement,
) -> Result<Placement, PlacementError> {
    let mut ranks: Vec<Vec<usize>> = held
        .into_iter()
        .map(|slots| slots.into_iter().map(|e| e.index()).collect())
        .collect();
    for expert in absent {
        let wants = |&rank: &usize| {
            let slots = wanted.experts_of(Rank::new(rank)).unwrap_or_default();
            slots.contains(expert)
        };
        let fewest = (0..ranks.len()).min_by_key(|&rank| ranks[rank].len());
        if let Some(rank) = (0..ranks.len()).find(wants).or(fewest) {
            ranks[rank].push(expert.index());
        }
    }
    let experts = wanted.num_logical_experts();
    Ok(Placement::from_ranks(experts, &ranks)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn experts(ids: &[usize]) -> BTreeSet<LogicalExpert> {
        ids.iter().copied().map(LogicalExpert::new).collect()
    }

    #[test]
    fn what_nobody_holds_is_read_and_never_sent() {
        // Experts 2 and 3 have reserved slots at the end of rank 0 and 1.
        let ends = Ends {
            current: Placement::from_ranks(4, &[[0, 2], [1, 3]]).unwrap(),
            absent: experts(&[2, 3]),
            target: Placement::from_ranks(4, &[[3, 0], [2, 1]]).unwrap(),
            topology: Topology::new(2).unwrap(),
            reads: true,
        };
        for staging in [1, 8] {
            let stages = plan(&ends, staging).unwrap();
            let reads: Vec<_> = stages
                .iter()
                .flat_map(|s| &s.plan.reads)
                .map(|read| (read.expert.index(), read.rank.index()))
                .collect();
            assert_eq!(BTreeSet::from_iter(reads), BTreeSet::from([(2, 1), (3, 0)]));
            assert_eq!(stages.iter().flat_map(|s| s.plan.transfers()).count(), 0);
            let last = stages.last().unwrap();
            assert_eq!(
                (&last.plan.placement, &last.absent),
                (&ends.target, &experts(&[]))
            );
            for stage in &stages {
                assert_eq!(stage.plan.placement.num_ranks(), 2);
            }
        }
    }

    #[test]
    fn what_cannot_be_read_keeps_nothing_else_from_moving() {
        let ends = Ends {
            current: Placement::from_ranks(4, &[[0, 2], [1, 3]]).unwrap(),
            absent: experts(&[2, 3]),
            target: Placement::from_ranks(4, &[vec![3, 0, 1, 2], vec![]]).unwrap(),
            topology: Topology::new(2).unwrap(),
            reads: false,
        };
        for staging in [1, 8] {
            let stages = plan(&ends, staging).unwrap();
            let sent = stages.iter().flat_map(|s| s.plan.transfers());
            let sent: Vec<_> = sent.map(|t| (t.expert.index(), t.to.index())).collect();
            assert_eq!(sent, [(1, 0)]);
            assert!(stages.iter().all(|s| s.plan.reads.is_empty()));
            assert!(stages.iter().all(|s| s.absent == ends.absent));
            assert_eq!(stages.last().unwrap().plan.placement, ends.target);
        }
    }

    #[test]
    fn restoring_keeps_the_placement() {
        let placement = Placement::from_ranks(3, &[vec![0, 0, 2], vec![1]]).unwrap();
        let ends = Ends {
            current: placement.clone(),
            absent: experts(&[2]),
            target: placement.clone(),
            topology: Topology::new(2).unwrap(),
            reads: true,
        };
        let stages = plan(&ends, 4).unwrap();
        assert_eq!(stages.len(), 1);
        assert_eq!(stages[0].plan.placement, placement);
        assert_eq!(stages[0].plan.reads.len(), 1);
    }
}
