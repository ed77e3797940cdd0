//! Who sends what when: a function of the plan and of what all ranks have said.

use std::ops::Range;

use moekit_routing::{LogicalExpert, Rank};

use crate::stages::Stage;

/// A stage of a layer's migration.
#[derive(Debug)]
pub(super) struct Planned {
    pub(super) layer: usize,
    /// Number of the stage in its layer.
    pub(super) number: usize,
    pub(super) stage: Stage,
    /// Bytes of the largest expert of the layer.
    pub(super) expert_bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Status {
    Waiting,
    /// Its rounds take place from this position on.
    UnderWay(u64),
    Committed,
}

/// A rank's part in a round: an expert that it sends.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Slot {
    pub(super) layer: usize,
    pub(super) expert: LogicalExpert,
    pub(super) to: Rank,
    /// The positions that are its own on the sender and on the receiver.
    pub(super) positions: Range<u64>,
}

/// The rounds of all stages in one line, each as long as the largest expert of its layer, and a
/// window over it that is as long as the budget of a step.
///
/// In one exchange ranks send what lies in the window, which moves on when all have. As a rank sends
/// at most one expert and receives at most one in a round, it never sends or receives more than the
/// budget in a step, however many rounds, stages and layers lie in the window.
#[derive(Debug)]
pub(super) struct Schedule {
    stages: Vec<Planned>,
    status: Vec<Status>,
    /// Bytes that arrive at each rank in each stage, `[stages][R]`.
    arriving: Vec<Vec<u64>>,
    budget: u64,
    staging: u64,
    position: u64,
    /// Where the last round that is under way ends.
    end: u64,
}

impl Schedule {
    /// # Arguments
    ///
    /// - `budget` - bytes per step.
    /// - `staging` - bytes that a rank may receive before it commits.
    pub(super) fn new(stages: Vec<Planned>, budget: u64, staging: u64) -> Self {
        let arriving = stages.iter().map(arriving).collect();
        Self {
            status: vec![Status::Waiting; stages.len()],
            arriving,
            stages,
            budget,
            staging,
            position: 0,
            end: 0,
        }
    }

    /// Puts stages under way, in order, as far as those of their layers before them have committed
    /// and the staging budget goes; the first one that is under way alone always fits.
    pub(super) fn admit(&mut self) -> Vec<usize> {
        let mut admitted = Vec::new();
        for index in 0..self.stages.len() {
            if self.status[index] != Status::Waiting || !self.is_next_of_layer(index) {
                continue;
            }
            if !self.fits(index) {
                break;
            }
            let planned = &self.stages[index];
            let rounds = planned.stage.plan.rounds.len() as u64;
            self.status[index] = Status::UnderWay(self.end);
            self.end += rounds * planned.expert_bytes;
            admitted.push(index);
        }
        admitted
    }

    fn is_next_of_layer(&self, index: usize) -> bool {
        let layer = self.stages[index].layer;
        let mut before = (0..index).filter(|&i| self.stages[i].layer == layer);
        before.all(|i| self.status[i] == Status::Committed)
    }

    fn fits(&self, index: usize) -> bool {
        let mut under_way = self.under_way().peekable();
        if under_way.peek().is_none() {
            return true;
        }
        let mut sums = self.arriving[index].clone();
        for other in under_way {
            sums.iter_mut()
                .zip(&self.arriving[other])
                .for_each(|(sum, bytes)| *sum += bytes);
        }
        sums.iter().all(|&sum| sum <= self.staging)
    }

    /// Stages that have begun and not committed.
    fn under_way(&self) -> impl Iterator<Item = usize> {
        let stages = self.status.iter().enumerate();
        stages.filter_map(|(i, status)| matches!(status, Status::UnderWay(_)).then_some(i))
    }

    pub(super) fn stage(&self, index: usize) -> &Planned {
        &self.stages[index]
    }

    /// What a rank sends in a stage that is under way, in order.
    pub(super) fn slots_of(&self, index: usize, rank: Rank) -> Vec<Slot> {
        let planned = &self.stages[index];
        let Status::UnderWay(start) = self.status[index] else {
            return Vec::new();
        };
        let rounds = (0_u64..).zip(&planned.stage.plan.rounds);
        let own = rounds.flat_map(|(round, transfers)| {
            let begin = start + round * planned.expert_bytes;
            let own = transfers.iter().filter(|t| t.from == rank);
            own.map(move |t| Slot {
                layer: planned.layer,
                expert: t.expert,
                to: t.to,
                positions: begin..begin + planned.expert_bytes,
            })
        });
        own.collect()
    }

    /// The positions of this exchange.
    pub(super) fn window(&self) -> Range<u64> {
        self.position..self.position.saturating_add(self.budget)
    }

    /// After an exchange in which all ranks have sent what lies in the window.
    pub(super) fn advance(&mut self) {
        self.position = self.window().end.min(self.end);
    }

    /// Whether all that is sent in a stage has been sent.
    pub(super) fn is_through(&self, index: usize) -> bool {
        let planned = &self.stages[index];
        let rounds = planned.stage.plan.rounds.len() as u64;
        match self.status[index] {
            Status::Waiting => false,
            Status::UnderWay(start) => start + rounds * planned.expert_bytes <= self.position,
            Status::Committed => true,
        }
    }

    pub(super) fn commit(&mut self, index: usize) {
        self.status[index] = Status::Committed;
    }

    pub(super) fn len(&self) -> usize {
        self.stages.len()
    }

    pub(super) fn is_done(&self) -> bool {
        self.status.iter().all(|s| *s == Status::Committed)
    }

    /// Layer, layers that wait behind it, stage and round of the first stage that has not committed.
    pub(super) fn first_open(&self) -> Option<(usize, usize, usize, usize)> {
        let is_open = |&i: &usize| self.status[i] != Status::Committed;
        let index = (0..self.stages.len()).find(is_open)?;
        let planned = &self.stages[index];
        let mut others: Vec<usize> = (index..self.stages.len())
            .filter(is_open)
            .map(|i| self.stages[i].layer)
            .filter(|&layer| layer != planned.layer)
            .collect();
        others.sort_unstable();
        others.dedup();
        let round = match self.status[index] {
            Status::UnderWay(start) => {
                let round = self.position.saturating_sub(start) / planned.expert_bytes.max(1);
                (round as usize).min(planned.stage.plan.rounds.len())
            }
            _ => 0,
        };
        Some((planned.layer, others.len(), planned.number, round))
    }
}

/// Bytes that arrive at each rank.
fn arriving(planned: &Planned) -> Vec<u64> {
    let plan = &planned.stage.plan;
    let mut bytes = vec![0; plan.placement.num_ranks()];
    let transfers = plan.transfers().map(|t| t.to);
    for rank in transfers.chain(plan.reads.iter().map(|read| read.rank)) {
        if let Some(sum) = bytes.get_mut(rank.index()) {
            *sum += planned.expert_bytes;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use moekit_placement::{Placement, Topology};

    use super::*;
    use crate::stages::{Ends, plan};

    /// Two ranks that exchange all of their three experts in each of two layers, as stages that
    /// commit `staging` experts at a time.
    fn stages(staging: usize, expert_bytes: [u64; 2]) -> Vec<Planned> {
        let ends = Ends {
            current: Placement::from_ranks(6, &[[0, 1, 2], [3, 4, 5]]).unwrap(),
            absent: BTreeSet::new(),
            target: Placement::from_ranks(6, &[[3, 4, 5], [0, 1, 2]]).unwrap(),
            topology: Topology::new(2).unwrap(),
            reads: true,
        };
        let layers = expert_bytes.into_iter().enumerate();
        let stages = layers.flat_map(|(layer, expert_bytes)| {
            let stages = plan(&ends, staging).unwrap();
            let number = stages.into_iter().enumerate();
            number.map(move |(number, stage)| Planned {
                layer,
                number,
                stage,
                expert_bytes,
            })
        });
        stages.collect()
    }

    #[test]
    fn nobody_sends_or_receives_more_than_the_budget_in_a_window() {
        for budget in [1, 70, 100, 250, 10_000] {
            let mut schedule = Schedule::new(stages(3, [100, 70]), budget, u64::MAX);
            assert_eq!(schedule.admit(), [0, 1], "layers side by side");
            let slots: Vec<Slot> = (0..2)
                .flat_map(|index| (0..2).flat_map(move |rank| [(index, Rank::new(rank))]))
                .flat_map(|(index, rank)| schedule.slots_of(index, rank))
                .collect();
            assert_eq!(slots.len(), 12);
            let mut windows = 0;
            while !(schedule.is_through(0) && schedule.is_through(1)) {
                let window = schedule.window();
                let mut received: BTreeMap<usize, u64> = BTreeMap::new();
                for slot in &slots {
                    let from = slot.positions.start.max(window.start);
                    let to = slot.positions.end.min(window.end);
                    *received.entry(slot.to.index()).or_default() += to.saturating_sub(from);
                }
                assert!(received.values().all(|&bytes| bytes <= budget));
                schedule.advance();
                windows += 1;
            }
            // Three experts of 100 and three of 70 bytes, without a gap.
            assert_eq!(windows, 510_u64.div_ceil(budget));
        }
    }

    #[test]
    fn staging_is_shared_by_the_layers_that_are_under_way() {
        // All of one layer, but not two, and a stage at a time of the other.
        let mut schedule = Schedule::new(stages(3, [100, 70]), 1000, 400);
        assert_eq!(schedule.admit(), [0]);
        schedule.commit(0);
        assert_eq!(schedule.admit(), [1]);
        schedule.commit(1);
        assert!(schedule.is_done());

        let mut schedule = Schedule::new(stages(1, [100, 70]), 1000, 170);
        assert_eq!(schedule.admit(), [0, 3], "the first of each layer");
        assert_eq!(schedule.first_open(), Some((0, 1, 0, 0)));
        schedule.commit(3);
        assert_eq!(schedule.admit(), [4], "layers do not wait for each other");
        schedule.commit(0);
        assert_eq!(schedule.admit(), [1]);
        assert_eq!(schedule.first_open(), Some((0, 1, 1, 0)));
        assert!(!schedule.is_done());
    }
}
