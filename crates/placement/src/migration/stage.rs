//! One stage: from the placement in force to the next, with one commit.

use std::collections::{BTreeMap, BTreeSet};

use moekit_routing::{LocalExpert, LogicalExpert, Placement, Rank};

use super::group::Group;
use super::moves::in_sequence;
use super::plan::{Buffer, CheckpointRead, Link, MigrationStage, RankCommit, Transfer};
use super::rounds::assign_rounds;
use super::sources::balanced_sources;

/// An expert that a rank must get from elsewhere.
struct Arrival {
    expert: LogicalExpert,
    to: Rank,
    into: Buffer,
}

/// What happens inside of one rank.
#[derive(Default)]
struct RankWork {
    /// Experts to get, in the order of their first slot.
    arrivals: Vec<(LogicalExpert, Buffer)>,
    /// What shall be in a slot is now in another buffer.
    copies: BTreeMap<Buffer, (Buffer, LogicalExpert)>,
    unchanged: usize,
    copied: usize,
    staging: usize,
}

/// Plans a stage. Both placements have the ranks of the group; `target` has no slot on a lost rank.
pub(super) fn between(
    current: &Placement,
    target: &Placement,
    group: &Group<'_>,
) -> MigrationStage {
    let num_ranks = group.num_ranks();
    let mut arrivals = Vec::new();
    let mut stage = MigrationStage {
        reads: Vec::new(),
        rounds: Vec::new(),
        commits: Vec::new(),
        staging: vec![0; num_ranks],
        unchanged: 0,
        copied: 0,
        placement: target.clone(),
    };
    for rank in group.living() {
        let mut work = RankWork::of(experts(current, rank), experts(target, rank));
        stage.unchanged += work.unchanged;
        stage.copied += work.copied;
        let (moves, spare) = in_sequence(std::mem::take(&mut work.copies));
        stage.staging[rank.index()] = work.staging.max(usize::from(spare));
        if !moves.is_empty() {
            stage.commits.push(RankCommit { rank, moves });
        }
        arrivals.extend(work.arrivals.into_iter().map(|(expert, into)| Arrival {
            expert,
            to: rank,
            into,
        }));
    }
    arrivals.sort_by_key(|a| (a.expert, a.to));
    route(&arrivals, current, group, &mut stage);
    stage
}

fn experts(placement: &Placement, rank: Rank) -> &[LogicalExpert] {
    placement.experts_of(rank).unwrap_or_default()
}

impl RankWork {
    /// Slots beyond the ones in force belong to the rank but serve nobody before the commit, so an
    /// expert is received right there if it can be, and into a staging buffer if not.
    fn of(current: &[LogicalExpert], target: &[LogicalExpert]) -> Self {
        let mut work = Self::default();
        // Where each expert of the rank is, best in a slot that it keeps: nothing overwrites it.
        let mut held: BTreeMap<LogicalExpert, usize> = BTreeMap::new();
        for (slot, &expert) in current.iter().enumerate() {
            let stays = |slot: usize| target.get(slot) == Some(&expert);
            let at = held.entry(expert).or_insert(slot);
            if !stays(*at) && stays(slot) {
                *at = slot;
            }
        }
        let mut first_slot: BTreeMap<LogicalExpert, usize> = BTreeMap::new();
        for (slot, expert) in target.iter().enumerate() {
            if !held.contains_key(expert) {
                // The lowest slot that is free already, else the lowest.
                let at = first_slot.entry(*expert).or_insert(slot);
                if *at < current.len() && slot >= current.len() {
                    *at = slot;
                }
            }
        }
        let direct: BTreeSet<usize> = first_slot.values().copied().collect();
        let mut spare_slots = (current.len()..target.len()).filter(|slot| !direct.contains(slot));
        let mut arrived: BTreeMap<LogicalExpert, Buffer> = BTreeMap::new();
        for (&expert, &slot) in &first_slot {
            let free = if slot >= current.len() {
                Some(slot)
            } else {
                spare_slots.next()
            };
            let into = match free {
                Some(slot) => Buffer::Slot(LocalExpert::new(slot)),
                None => {
                    work.staging += 1;
                    Buffer::Staging(work.staging - 1)
                }
            };
            arrived.insert(expert, into);
            work.arrivals.push((expert, into));
        }
        for (slot, &expert) in target.iter().enumerate() {
            let to = Buffer::Slot(LocalExpert::new(slot));
            let is_at = |slot: &usize| Buffer::Slot(LocalExpert::new(*slot));
            if current.get(slot) == Some(&expert) {
                work.unchanged += 1;
                continue;
            }
            let from = held
                .get(&expert)
                .map(is_at)
                .or_else(|| arrived.get(&expert).copied());
            if let Some(from) = from.filter(|from| *from != to) {
                work.copies.insert(to, (from, expert));
            }
            work.copied += usize::from(first_slot.get(&expert) != Some(&slot));
        }
        work
    }
}

/// Finds a source and a round for every arrival.
fn route(arrivals: &[Arrival], current: &Placement, group: &Group<'_>, stage: &mut MigrationStage) {
    let holders = Holders::of(current, group);
    let mut received = Vec::new();
    let mut allowed = Vec::new();
    for arrival in arrivals {
        let sources = holders.nearest(arrival.expert, arrival.to, group);
        if sources.is_empty() {
            stage.reads.push(CheckpointRead {
                expert: arrival.expert,
                rank: arrival.to,
                into: arrival.into,
            });
        } else {
            received.push(arrival);
            allowed.push(sources);
        }
    }
    stage.reads.sort_by_key(|read| (read.rank, read.expert));
    let sources = balanced_sources(&allowed, group.num_ranks());
    let pairs: Vec<(usize, usize)> = sources
        .iter()
        .zip(&received)
        .map(|(&from, arrival)| (from, arrival.to.index()))
        .collect();
    let (round_of, num_rounds) = assign_rounds(&pairs, group.num_ranks());
    stage.rounds = vec![Vec::new(); num_rounds];
    for ((arrival, &from), &round) in received.iter().zip(&sources).zip(&round_of) {
        let from = Rank::new(from);
        stage.rounds[round].push(Transfer {
            expert: arrival.expert,
            from,
            slot: holders.slot(arrival.expert, from),
            to: arrival.to,
            into: arrival.into,
            link: group.link(from, arrival.to),
        });
    }
    for round in &mut stage.rounds {
        round.sort_by_key(|t| t.from);
    }
}

/// The living ranks that hold each expert, ascending, with the lowest slot on each.
struct Holders(Vec<BTreeMap<Rank, LocalExpert>>);

impl Holders {
    fn of(placement: &Placement, group: &Group<'_>) -> Self {
        let mut holders = vec![BTreeMap::new(); placement.num_logical_experts()];
        for rank in group.living() {
            for (slot, expert) in experts(placement, rank).iter().enumerate() {
                holders[expert.index()]
                    .entry(rank)
                    .or_insert(LocalExpert::new(slot));
            }
        }
        Self(holders)
    }

    /// The holders on the node of `to` if there are any, else all.
    fn nearest(&self, expert: LogicalExpert, to: Rank, group: &Group<'_>) -> Vec<usize> {
        let all = self.0[expert.index()].keys().copied();
        let near: Vec<usize> = all
            .clone()
            .filter(|&from| group.link(from, to) == Link::SameNode)
            .map(Rank::index)
            .collect();
        if near.is_empty() {
            return all.map(Rank::index).collect();
        }
        near
    }

    fn slot(&self, expert: LogicalExpert, rank: Rank) -> LocalExpert {
        self.0[expert.index()][&rank]
    }
}
