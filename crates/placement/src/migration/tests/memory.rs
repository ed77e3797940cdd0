//! A simulated memory on which plans are carried out.

use std::collections::{BTreeMap, BTreeSet};

use moekit_routing::{LocalExpert, Placement, Rank, Topology};

use crate::migration::{Buffer, LayerMigration, Link, LocalMove, MigrationStage};

/// What a buffer holds, and the how manieth write put it there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cell {
    expert: usize,
    version: usize,
}

/// The memory of all ranks, and the placement that its table names.
pub(super) struct Memory<'a> {
    topology: &'a Topology,
    lost: BTreeSet<Rank>,
    in_force: Placement,
    cells: BTreeMap<(Rank, Buffer), Cell>,
    writes: usize,
}

type Checked<T = ()> = Result<T, String>;

macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

fn slot(i: usize) -> Buffer {
    Buffer::Slot(LocalExpert::new(i))
}

impl<'a> Memory<'a> {
    /// `placement` has the ranks of the topology.
    pub(super) fn new(topology: &'a Topology, placement: Placement, lost: &[Rank]) -> Self {
        let mut memory = Self {
            topology,
            lost: lost.iter().copied().collect(),
            in_force: placement,
            cells: BTreeMap::new(),
            writes: 0,
        };
        for rank in memory.living() {
            for (i, expert) in memory.held(rank).into_iter().enumerate() {
                memory.write((rank, slot(i)), expert);
            }
        }
        memory
    }

    pub(super) fn in_force(&self) -> &Placement {
        &self.in_force
    }

    fn living(&self) -> Vec<Rank> {
        (0..self.topology.num_ranks())
            .map(Rank::new)
            .filter(|rank| !self.lost.contains(rank))
            .collect()
    }

    /// The experts that the table names on a rank.
    fn held(&self, rank: Rank) -> Vec<usize> {
        let experts = self.in_force.experts_of(rank).unwrap();
        experts.iter().map(|e| e.index()).collect()
    }

    fn write(&mut self, at: (Rank, Buffer), expert: usize) {
        self.writes += 1;
        let version = self.writes;
        self.cells.insert(at, Cell { expert, version });
    }

    fn read(&self, at: (Rank, Buffer), expert: usize) -> Checked<Cell> {
        let cell = self.cells.get(&at);
        let cell = cell.ok_or(format!("{at:?} is read but empty"))?;
        ensure!(
            cell.expert == expert,
            "{at:?} is read for expert {expert} but holds {cell:?}"
        );
        Ok(*cell)
    }

    /// Carries out all stages of a plan, with every check.
    pub(super) fn replay(&mut self, plan: &LayerMigration) -> Checked {
        plan.stages.iter().try_for_each(|stage| self.stage(stage))
    }

    fn stage(&mut self, stage: &MigrationStage) -> Checked {
        let start = self.cells.clone();
        let mut arrived = BTreeSet::new();
        for read in &stage.reads {
            let expert = read.expert.index();
            let holder = self
                .living()
                .into_iter()
                .find(|&r| self.held(r).contains(&expert));
            ensure!(holder.is_none(), "{read:?}, but {holder:?} holds it");
            self.arrive(stage, (read.rank, read.into), expert, &mut arrived)?;
        }
        self.check_reachable(&start)?;
        for round in &stage.rounds {
            let ends = |end: fn(&crate::Transfer) -> Rank| {
                round.iter().map(end).collect::<BTreeSet<_>>().len()
            };
            ensure!(
                ends(|t| t.from) == round.len(),
                "a rank sends twice in {round:?}"
            );
            ensure!(
                ends(|t| t.to) == round.len(),
                "a rank receives twice in {round:?}"
            );
            // All send before any receives: a buffer that is read and written would be lost.
            for t in round {
                let same_node = self.topology.node_of(t.from) == self.topology.node_of(t.to);
                ensure!(same_node == (t.link == Link::SameNode), "the link of {t:?}");
                ensure!(!self.lost.contains(&t.from), "{t:?} comes from a lost rank");
                ensure!(
                    t.slot.index() < self.held(t.from).len(),
                    "the slot of {t:?}"
                );
                let at = (t.from, Buffer::Slot(t.slot));
                let cell = self.read(at, t.expert.index())?;
                ensure!(
                    start[&at] == cell,
                    "{at:?} was overwritten before it was sent"
                );
            }
            for t in round {
                self.arrive(stage, (t.to, t.into), t.expert.index(), &mut arrived)?;
            }
            self.check_reachable(&start)?;
        }
        ensure!(
            stage.rounds.len() == largest_degree(stage),
            "the number of rounds"
        );
        self.commit(stage, &arrived)
    }

    /// An expert may arrive only where the table names nothing and nothing else arrived.
    fn arrive(
        &mut self,
        stage: &MigrationStage,
        at: (Rank, Buffer),
        expert: usize,
        arrived: &mut BTreeSet<(Rank, Buffer)>,
    ) -> Checked {
        let rank = at.0;
        ensure!(
            !self.lost.contains(&rank),
            "an arrival at {at:?}, which is lost"
        );
        let slots = stage.placement.experts_of(rank).unwrap().len();
        let free = match at.1 {
            Buffer::Slot(i) => (self.held(rank).len()..slots).contains(&i.index()),
            Buffer::Staging(i) => i < stage.staging[rank.index()],
        };
        ensure!(free, "{at:?} is no free buffer");
        ensure!(arrived.insert(at), "two arrivals at {at:?}");
        self.write(at, expert);
        Ok(())
    }

    /// Every replica that the table names on a living rank is complete and as it was.
    fn check_reachable(&self, start: &BTreeMap<(Rank, Buffer), Cell>) -> Checked {
        for rank in self.living() {
            for (i, expert) in self.held(rank).into_iter().enumerate() {
                let at = (rank, slot(i));
                let cell = self.read(at, expert)?;
                ensure!(start[&at] == cell, "{at:?} changed while it was in force");
            }
        }
        Ok(())
    }

    fn commit(&mut self, stage: &MigrationStage, arrived: &BTreeSet<(Rank, Buffer)>) -> Checked {
        for commit in &stage.commits {
            ensure!(
                !self.lost.contains(&commit.rank),
                "{commit:?} on a lost rank"
            );
            for &LocalMove { expert, from, to } in &commit.moves {
                if let Buffer::Staging(i) = to {
                    ensure!(
                        i < stage.staging[commit.rank.index()],
                        "no buffer for {commit:?}"
                    );
                }
                let cell = self.read((commit.rank, from), expert.index())?;
                self.write((commit.rank, to), cell.expert);
            }
        }
        let used: BTreeSet<(Rank, Buffer)> = self.cells.keys().copied().collect();
        for (rank, &declared) in stage.staging.iter().enumerate() {
            let staged =
                |b: &&(Rank, Buffer)| b.0.index() == rank && matches!(b.1, Buffer::Staging(_));
            ensure!(
                used.iter().filter(staged).count() == declared,
                "staging of rank {rank}"
            );
        }
        self.in_force = stage.placement.clone();
        let mut named = 0;
        for rank in self.living() {
            let slots = self.held(rank);
            named += slots.len();
            for (i, &expert) in slots.iter().enumerate() {
                self.read((rank, slot(i)), expert)?;
            }
            // What the table does not name is given back.
            self.cells.retain(|at, _| {
                at.0 != rank || matches!(at.1, Buffer::Slot(i) if i.index() < slots.len())
            });
        }
        ensure!(
            named == stage.unchanged + stage.copied + arrived.len(),
            "{named} slots, but {} unchanged, {} copied, {} arrived",
            stage.unchanged,
            stage.copied,
            arrived.len()
        );
        Ok(())
    }
}

fn largest_degree(stage: &MigrationStage) -> usize {
    let mut degrees: BTreeMap<(bool, Rank), usize> = BTreeMap::new();
    for t in stage.transfers() {
        *degrees.entry((true, t.from)).or_default() += 1;
        *degrees.entry((false, t.to)).or_default() += 1;
    }
    degrees.into_values().max().unwrap_or(0)
}
