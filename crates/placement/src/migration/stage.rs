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
        let held = held_slots(current, target);
        let first_slot = first_slots(current, target, &held);
        let direct: BTreeSet<usize> = first_slot.values().copied().collect();
        let mut unused = (current.len()..target.len()).filter(|slot| !direct.contains(slot));
        let mut arrived: BTreeMap<LogicalExpert, Buffer> = BTreeMap::new();
        for (&expert, &slot) in &first_slot {
            let free = Some(slot).filter(|&slot| slot >= current.len());
            let into = free.or_else(|| unused.next()).map_or_else(
                || {
                    work.staging += 1;
                    Buffer::Staging(work.staging - 1)
                },
                slot_buffer,
            );
            arrived.insert(expert, into);
            work.arrivals.push((expert, into));
        }
        for (slot, &expert) in target.iter().enumerate() {
            if current.get(slot) == Some(&expert) {
                work.unchanged += 1;
                continue;
            }
            let from = held.get(&expert).copied().map(slot_buffer);
            let from = from.or_else(|| arrived.get(&expert).copied());
            let to = slot_buffer(slot);
            if let Some(from) = from.filter(|from| *from != to) {
                work.copies.insert(to, (from, expert));
            }
            work.copied += usize::from(first_slot.get(&expert) != Some(&slot));
        }
        work
    }
}

fn slot_buffer(slot: usize) -> Buffer {
    Buffer::Slot(LocalExpert::new(slot))
}

/// Where each expert of a rank is: best in a slot that it keeps, as nothing overwrites it there.
fn held_slots(
    current: &[LogicalExpert],
    target: &[LogicalExpert],
) -> BTreeMap<LogicalExpert, usize> {
    let mut held = BTreeMap::new();
    for (slot, &expert) in current.iter().enumerate() {
        let stays = |slot: usize| target.get(slot) == Some(&expert);
        let at = held.entry(expert).or_insert(slot);
        if !stays(*at) && stays(slot) {
            *at = slot;
        }
    }
    held
}

/// For which slot an expert that the rank does not hold arrives: the lowest one that is not in
/// force, else the lowest. Further slots of it are copies.
fn first_slots(
    current: &[LogicalExpert],
    target: &[LogicalExpert],
    held: &BTreeMap<LogicalExpert, usize>,
) -> BTreeMap<LogicalExpert, usize> {
    let mut first = BTreeMap::new();
    for (slot, expert) in target.iter().enumerate() {
        if !held.contains_key(expert) {
            let at = first.entry(*expert).or_insert(slot);
            if *at < current.len() && slot >= current.len() {
                *at = slot;
            }
        }
    }
    first
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
