//! The planner of one layer.

use crate::{
    connect::Linker,
    counts::Counts,
    problem::{LayerProblem, PlanError, Settings},
    replan::Residents,
    seed::Seeder,
    state::State,
};

/// The experts of every slot of a layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerPlan {
    /// The logical expert of each slot, rank by rank: `[num_slots]`.
    pub experts: Vec<u32>,
    /// The largest rank cost when tokens split evenly over replicas.
    pub largest: f64,
    /// What no plan can beat: the mean, or the largest replica of the best apportionment.
    pub bound: f64,
    /// Slots whose expert was not on their rank before; all of them without a placement in force.
    pub received: usize,
    /// Pairs of ranks that the search looked at.
    pub work: u64,
}

/// Plans layers one after the other; keeps only scratch memory between them.
#[derive(Debug, Default)]
pub struct Planner {
    pub(crate) settings: Settings,
    pub(crate) state: State,
    pub(crate) counts: Counts,
    pub(crate) seeder: Seeder,
    pub(crate) linker: Linker,
    pub(crate) best: Best,
    /// Ranks that have slots.
    pub(crate) live: Vec<u32>,
    /// Replicas of each expert still to be placed.
    pub(crate) todo: Vec<u32>,
    /// What the ranks hold in force.
    pub(crate) residents: Residents,
    /// A state to go back to.
    pub(crate) undo: State,
}

/// The best placement so far.
#[derive(Debug, Default)]
pub(crate) struct Best {
    pub(crate) count: Vec<u32>,
    pub(crate) slot: Vec<u32>,
    pub(crate) worst: f64,
}

/// The sizes that a plan has to respect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Slots beyond one per expert.
    pub(crate) spare: usize,
    /// Ranks that have slots: no expert needs more replicas.
    pub(crate) cap: u32,
    /// What no plan can beat.
    pub(crate) bound: f64,
    /// The load that a rank of the highest speed carries at that bound.
    pub(crate) room: f64,
}

impl Planner {
    /// A planner with these settings.
    pub fn new(settings: Settings) -> Self {
        Self { settings, ..Self::default() }
    }

    /// The experts of every slot of a layer.
    ///
    /// # Errors
    ///
    /// If the problem contradicts itself; see [`PlanError`].
    pub fn plan(&mut self, problem: &LayerProblem<'_>) -> Result<LayerPlan, PlanError> {
        problem.check()?;
        let frame = self.frame(problem);
        match problem.current {
            Some(current) => self.replan(current, problem.budget, frame),
            None => self.fresh(frame),
        }
        Ok(self.finish(problem, frame))
    }

    /// Takes in the problem and bounds its largest rank cost.
    fn frame(&mut self, problem: &LayerProblem<'_>) -> Frame {
        let experts = problem.loads.len();
        // A rank with more slots than experts cannot but repeat itself: its further slots come last.
        let slots: Vec<usize> = problem.slots_per_rank.iter().map(|&s| s.min(experts)).collect();
        self.state.reset(problem.loads, &slots, problem.speed);
        self.counts.sort(problem.loads);
        self.live.clone_from(&self.state.order);
        let spare = self.state.slot.len() - experts;
        let cap = self.live.len() as u32;
        let speeds = self.live.iter().map(|&r| 1.0 / self.state.pace[r as usize]);
        let (speed, top) = (speeds.clone().sum::<f64>(), speeds.fold(0.0, f64::max));
        let total: f64 = problem.loads.iter().sum();
        let replica = self.counts.apportion(&mut self.state, spare, cap);
        let bound = (total / speed).max(replica / top);
        Frame { spare, cap, bound, room: bound * top }
    }

    /// Keeps the placement if it is better than the best so far.
    pub(crate) fn keep(&mut self) {
        let worst = self.state.worst();
        if worst < self.best.worst {
            self.best.worst = worst;
            self.best.count.clone_from(&self.state.count);
            self.best.slot.clone_from(&self.state.slot);
        }
    }

    /// Goes back to the best placement.
    pub(crate) fn restore(&mut self) {
        for (expert, &count) in (0..).zip(&self.best.count) {
            if self.state.count[expert as usize] != count {
                self.state.set_count(expert, count);
            }
        }
        self.state.slot.clone_from(&self.best.slot);
        self.state.fill();
        self.state.settle();
    }

    fn finish(&mut self, problem: &LayerProblem<'_>, frame: Frame) -> LayerPlan {
        let mut experts = Vec::with_capacity(problem.slots_per_rank.iter().sum());
        let mut from = 0;
        for &slots in problem.slots_per_rank {
            let own = slots.min(problem.loads.len());
            experts.extend_from_slice(&self.best.slot[from..from + own]);
            let lightest = self.counts.by_load.iter().rev().copied().cycle();
            experts.extend(lightest.take(slots - own));
            from += own;
        }
        let received = match problem.current {
            Some(_) => self.residents.received(&self.state) as usize,
            None => experts.len(),
        };
        LayerPlan {
            received,
            experts,
            largest: self.best.worst,
            bound: frame.bound,
            work: self.state.work,
        }
    }
}
