//! The placements between two placements.
//!
//! A *unit* is a set of arrivals, at most one per rank, after which every expert that was reachable
//! still is. There are two kinds. In one, an expert arrives at a rank that has a slot to spare: one
//! beyond those in force, or one whose expert has another replica. In the other, ranks pass experts
//! around a cycle: each gives up the last replica of an expert, which the next one receives.
//!
//! Units are enough to get anywhere. Let a rank still need an expert and have no slot to spare. It
//! has one with an expert that leaves it, the last replica of it; so some other rank still needs
//! that one. If that rank has a slot to spare, there is a unit of the first kind. Else the same
//! holds for it, and so on until a rank comes again: that is a cycle. Every arrival of a unit is one
//! that the whole migration has too, so no expert travels more than it would have to.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use moekit_routing::{LogicalExpert, Placement, Rank, RoutingError};

use super::group::Group;

/// An expert arrives at a rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) rank: usize,
    pub(super) expert: usize,
    /// The slot that it overwrites, with the expert that is lost there; `None` if it gets a slot
    /// beyond those in force.
    pub(super) overwrites: Option<(usize, usize)>,
}

/// Which units are wanted.
pub(super) struct Limits<'a> {
    /// Arrivals of a unit, at most.
    pub(super) arrivals: usize,
    /// Whether the rank has room for the arrival.
    pub(super) room: &'a dyn Fn(&Arrival) -> bool,
}

/// A layer on its way from one placement to another. Indices are plain numbers in here.
pub(super) struct Walk {
    num_experts: usize,
    /// The experts in the slots of each living rank.
    slots: Vec<Vec<usize>>,
    /// The experts that each rank shall hold, ascending, each once; and in which slot, the first.
    target: Vec<BTreeMap<usize, usize>>,
    target_slots: Vec<usize>,
    /// What each rank still must get, ascending.
    missing: Vec<Vec<usize>>,
    /// Slots of each expert on living ranks.
    copies: Vec<usize>,
    /// What lost ranks held.
    lost: Vec<Vec<usize>>,
}

impl Walk {
    /// Both placements have the ranks of the group. What `target` names on lost ones is not to arrive.
    pub(super) fn new(current: &Placement, target: &Placement, group: &Group<'_>) -> Self {
        let experts = |placement: &Placement, rank| -> Vec<usize> {
            let experts = placement.experts_of(Rank::new(rank)).unwrap_or_default();
            experts.iter().copied().map(LogicalExpert::index).collect()
        };
        let mut walk = Self {
            num_experts: current.num_logical_experts(),
            slots: Vec::new(),
            target: Vec::new(),
            target_slots: Vec::new(),
            missing: Vec::new(),
            copies: vec![0; current.num_logical_experts()],
            lost: Vec::new(),
        };
        for rank in 0..group.num_ranks() {
            let (mut held, mut wanted) = (experts(current, rank), experts(target, rank));
            let mut lost = Vec::new();
            if group.is_lost(rank) {
                std::mem::swap(&mut held, &mut lost);
                wanted.clear();
            }
            for &expert in &held {
                walk.copies[expert] += 1;
            }
            walk.target_slots.push(wanted.len());
            let mut first_slot = BTreeMap::new();
            for (slot, expert) in wanted.into_iter().enumerate() {
                first_slot.entry(expert).or_insert(slot);
            }
            let absent = |e: &usize| !held.contains(e);
            walk.missing
                .push(first_slot.keys().copied().filter(absent).collect());
            walk.target.push(first_slot);
            walk.slots.push(held);
            walk.lost.push(lost);
        }
        walk
    }

    /// The experts in the slots of each living rank.
    pub(super) fn slots(&self) -> &[Vec<usize>] {
        &self.slots
    }

    /// Whether no living rank holds the expert.
    pub(super) fn is_orphan(&self, expert: usize) -> bool {
        self.copies[expert] == 0
    }

    /// The placement so far, or `target` itself if nothing is missing. A lost rank keeps the experts
    /// that no other rank holds yet: the table must name someone.
    pub(super) fn reached(&self, target: &Placement) -> Result<Placement, RoutingError> {
        if self.missing.iter().all(Vec::is_empty) {
            return Ok(target.clone());
        }
        let ranks: Vec<Vec<usize>> = self
            .slots
            .iter()
            .zip(&self.lost)
            .map(|(held, lost)| {
                let orphans = lost.iter().copied().filter(|&e| self.is_orphan(e));
                held.iter().copied().chain(orphans).collect()
            })
            .collect();
        Placement::from_ranks(self.num_experts, &ranks)
    }

    /// Carries out a unit.
    pub(super) fn apply(&mut self, unit: &[Arrival]) {
        for arrival in unit {
            let held = &mut self.slots[arrival.rank];
            self.copies[arrival.expert] += 1;
            match arrival.overwrites {
                None => held.push(arrival.expert),
                Some((slot, overwritten)) => {
                    held[slot] = arrival.expert;
                    self.copies[overwritten] -= 1;
                }
            }
            self.missing[arrival.rank].retain(|&e| e != arrival.expert);
        }
    }

    /// Calls `visit` with the units of one or two arrivals within the limits, by rank, expert and
    /// slot; if there is none, with the shortest cycle that is longer. `visit` may end it.
    ///
    /// O(P + R) for the lists and O(1) for each unit; the shortest cycle O(R (P + R)).
    pub(super) fn units(
        &self,
        limits: &Limits<'_>,
        visit: &mut dyn FnMut(&[Arrival]) -> ControlFlow<()>,
    ) {
        let mut found = false;
        let mut offer = |unit: &[Arrival]| {
            if unit.len() > limits.arrivals || !unit.iter().all(limits.room) {
                return ControlFlow::Continue(());
            }
            found = true;
            visit(unit)
        };
        if self.singles(&mut offer).is_break() {
            return;
        }
        let edges = self.last_replicas();
        if exchanges(&edges, &mut offer).is_break() || found {
            return;
        }
        if let Some(cycle) = self.shortest_cycle(&edges, limits) {
            let _ = visit(&cycle);
        }
    }

    /// Units of one arrival.
    fn singles(&self, offer: &mut dyn FnMut(&[Arrival]) -> ControlFlow<()>) -> ControlFlow<()> {
        for (rank, missing) in self.missing.iter().enumerate() {
            let may_grow = self.slots[rank].len() < self.target_slots[rank];
            let spare: Vec<(usize, usize)> = if may_grow || missing.is_empty() {
                Vec::new()
            } else {
                self.given_up(rank)
                    .filter(|&(_, expert)| self.copies[expert] > 1)
                    .collect()
            };
            for &expert in missing {
                let mut arrival = Arrival {
                    rank,
                    expert,
                    overwrites: None,
                };
                if may_grow {
                    offer(&[arrival])?;
                    continue;
                }
                // Its own slot first: what arrives there need not be copied again later.
                let own = |slot| self.target[rank].get(&expert) == Some(&slot);
                let (first, others): (Vec<_>, Vec<_>) =
                    spare.iter().partition(|&&(slot, _)| own(slot));
                for overwritten in first.into_iter().chain(others) {
                    arrival.overwrites = Some(overwritten);
                    offer(&[arrival])?;
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// The slots of a rank that it can do without, with their experts: those of experts that leave
    /// the rank, then those that repeat an earlier slot's.
    fn given_up(&self, rank: usize) -> impl Iterator<Item = (usize, usize)> {
        let held = &self.slots[rank];
        let target = &self.target[rank];
        let leaves = move |e: &usize| !target.contains_key(e);
        let leaving = held
            .iter()
            .copied()
            .enumerate()
            .filter(move |(_, e)| leaves(e));
        let repeated = held
            .iter()
            .copied()
            .enumerate()
            .filter(move |(slot, e)| !leaves(e) && held[..*slot].contains(e));
        leaving.chain(repeated)
    }

    /// Which rank gives up the last replica of an expert that another needs.
    fn last_replicas(&self) -> Edges {
        let mut needed_by: Vec<Vec<usize>> = vec![Vec::new(); self.num_experts];
        for (rank, missing) in self.missing.iter().enumerate() {
            for &expert in missing {
                needed_by[expert].push(rank);
            }
        }
        let mut edges: Edges = vec![BTreeMap::new(); self.slots.len()];
        for (rank, edges) in edges.iter_mut().enumerate() {
            for given in self.given_up(rank).filter(|&(_, e)| self.copies[e] == 1) {
                for &to in &needed_by[given.1] {
                    edges.entry(to).or_insert_with(Vec::new).push(given);
                }
            }
        }
        edges
    }

    /// The shortest cycle within the limits; of several, the one through the lowest rank.
    fn shortest_cycle(&self, edges: &Edges, limits: &Limits<'_>) -> Option<Vec<Arrival>> {
        // A rank overwrites a slot in force in every cycle, whichever it is.
        let has_room = |rank: usize| {
            (limits.room)(&Arrival {
                rank,
                expert: 0,
                overwrites: Some((0, 0)),
            })
        };
        let room: Vec<bool> = (0..edges.len()).map(has_room).collect();
        let mut shortest: Option<Vec<usize>> = None;
        for start in (0..edges.len()).filter(|&rank| room[rank]) {
            let below = shortest
                .as_ref()
                .map_or(limits.arrivals.saturating_add(1), Vec::len);
            shortest = cycle_through(start, edges, &room)
                .filter(|cycle| cycle.len() < below)
                .or(shortest);
        }
        let ranks = shortest?;
        let given = |from: usize, to: usize| edges[from].get(&to)?.first().copied();
        let mut cycle = Vec::with_capacity(ranks.len());
        for (i, &rank) in ranks.iter().enumerate() {
            let before = ranks[(i + ranks.len() - 1) % ranks.len()];
            let after = ranks[(i + 1) % ranks.len()];
            cycle.push(Arrival {
                rank,
                expert: given(before, rank)?.1,
                overwrites: Some(given(rank, after)?),
            });
        }
        Some(cycle)
    }
}

/// `edges[from][to]`: the slots, with their experts, that `from` gives up and `to` needs.
type Edges = Vec<BTreeMap<usize, Vec<(usize, usize)>>>;

/// Cycles of two.
fn exchanges(
    edges: &Edges,
    offer: &mut dyn FnMut(&[Arrival]) -> ControlFlow<()>,
) -> ControlFlow<()> {
    for (a, from_a) in edges.iter().enumerate() {
        for (&b, a_gives) in from_a.range(a + 1..) {
            for &to_b in a_gives {
                for &to_a in edges[b].get(&a).into_iter().flatten() {
                    let arrival = |rank, expert, overwritten| Arrival {
                        rank,
                        expert,
                        overwrites: Some(overwritten),
                    };
                    offer(&[arrival(a, to_a.1, to_b), arrival(b, to_b.1, to_a)])?;
                }
            }
        }
    }
    ControlFlow::Continue(())
}

/// The ranks of the shortest cycle through `start`, from it on; breadth first.
fn cycle_through(start: usize, edges: &Edges, room: &[bool]) -> Option<Vec<usize>> {
    let mut before = vec![usize::MAX; edges.len()];
    let mut queue = vec![start];
    let mut next = 0;
    while let Some(&rank) = queue.get(next) {
        next += 1;
        for &to in edges[rank].keys() {
            if to == start {
                let mut cycle = vec![rank];
                while let Some(&last) = cycle.last().filter(|&&last| last != start) {
                    cycle.push(before[last]);
                }
                cycle.reverse();
                return Some(cycle);
            }
            if room[to] && before[to] == usize::MAX {
                before[to] = rank;
                queue.push(to);
            }
        }
    }
    None
}
