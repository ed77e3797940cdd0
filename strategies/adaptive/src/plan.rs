//! The planner of one layer.

use crate::{
    connect::Linker,
    counts::Counts,
    greedy,
    problem::{LayerProblem, PlanError, Settings},
    search::{self, Movable},
    seed::Seeder,
    state::State,
};

/// Steps between the smallest possible largest replica and a whole rank that the cut tries.
const CUTS: usize = 16;
/// How many of them are searched to the end.
const DEEP_CUTS: usize = 4;
const PROMISING: f64 = 1.02;

/// The experts of every slot of a layer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct LayerPlan {
    /// The logical expert of each slot, rank by rank: `[num_slots]`.
    pub experts: Vec<u32>,
    /// The largest rank cost when tokens split evenly over replicas.
    pub largest: f64,
    /// What no plan can beat: see [`lower_bound`].
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
    pub(crate) todo: Vec<u32>,
    pub(crate) live: Vec<u32>,
    best: Best,
    other: State,
}

/// The best placement so far.
#[derive(Debug, Default)]
struct Best {
    count: Vec<u32>,
    slot: Vec<u32>,
    worst: f64,
}

/// The sizes that a plan has to respect.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Frame {
    /// Slots beyond one per expert.
    pub(crate) spare: usize,
    /// Ranks that have slots: no expert can have more replicas.
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
        self.fresh(frame);
        Ok(self.finish(frame))
    }

    fn frame(&mut self, problem: &LayerProblem<'_>) -> Frame {
        let experts = problem.loads.len();
        self.state.reset(problem.loads, problem.slots_per_rank, problem.speed);
        self.counts.sort(problem.loads);
        self.live.clear();
        self.live.extend_from_slice(&self.state.order);
        let spare = self.state.slot.len() - experts;
        let cap = self.live.len() as u32;
        let speed: f64 = self.live.iter().map(|&r| 1.0 / self.state.pace[r as usize]).sum();
        let top = self.live.iter().map(|&r| 1.0 / self.state.pace[r as usize]).fold(0.0, f64::max);
        let total: f64 = problem.loads.iter().sum();
        let replica = self.counts.apportion(&mut self.state, spare, cap);
        let bound = (total / speed).max(replica / top);
        Frame { spare, cap, bound, room: bound * top }
    }

    /// A plan from nothing: a few ways to choose the counts, the best placement that search finds.
    fn fresh(&mut self, frame: Frame) {
        let target = frame.bound * (1.0 + self.settings.epsilon);
        self.best.worst = f64::INFINITY;
        self.build(frame);
        self.search(target);
        if self.best.worst > target {
            self.try_cuts(frame, target);
        }
        self.guard(frame);
    }

    /// Seeds a placement with the counts in force.
    fn build(&mut self, frame: Frame) {
        let state = &mut self.state;
        state.clear_slots();
        state.order.clear();
        state.order.extend_from_slice(&self.live);
        self.todo.clear();
        self.todo.extend_from_slice(&state.count);
        self.linker.link(state, &self.counts.by_load[..self.counts.single_from], &mut self.todo, &self.live, frame.bound);
        self.seeder.longest_first(state, &self.counts, &self.todo, &self.live);
        state.settle();
    }

    fn search(&mut self, target: f64) {
        let limit = self.settings.work_limit;
        for movable in [Movable::Singles, Movable::All] {
            if search::descend(&mut self.state, target, movable, limit) {
                break;
            }
        }
        self.keep();
    }

    /// Keeps the placement if it is better than the best so far.
    fn keep(&mut self) {
        let worst = self.state.worst();
        if worst < self.best.worst {
            self.best.worst = worst;
            self.best.count.clone_from(&self.state.count);
            self.best.slot.clone_from(&self.state.slot);
        }
    }

    /// Fewer, larger replicas of the hottest experts, by rising size.
    fn try_cuts(&mut self, frame: Frame, target: f64) {
        self.counts.apportion(&mut self.state, frame.spare, frame.cap);
        let least = self.state.share.iter().copied().fold(0.0, f64::max);
        let most = |k: usize| least + (0.99 * frame.room - least) * k as f64 / CUTS as f64;
        let mut later: Vec<(f64, usize)> = Vec::new();
        let mut deep = 0;
        for k in 1..=CUTS {
            if !self.cut(frame, most(k)) { continue; }
            let worst = self.state.worst();
            if worst > PROMISING * target {
                later.push((worst, k));
                continue;
            }
            deep += 1;
            self.search(target);
            if self.best.worst <= target || deep == DEEP_CUTS {
                return;
            }
        }
        later.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        for &(_, k) in later.iter().take(DEEP_CUTS - deep) {
            self.cut(frame, most(k));
            self.search(target);
            if self.best.worst <= target {
                break;
            }
        }
    }

    fn cut(&mut self, frame: Frame, most: f64) -> bool {
        let fits = most < frame.room && self.counts.cut(&mut self.state, frame.spare, frame.cap, most, 0.5 * frame.room);
        if fits {
            self.build(frame);
        }
        fits
    }

    fn guard(&mut self, frame: Frame) {
        let _ = (&mut self.other, frame);
        self.counts.apportion(&mut self.state, frame.spare, frame.cap);
        self.state.order.clear();
        self.state.order.extend_from_slice(&self.live);
        if let Some(w) = greedy::pack(&mut self.state, &self.counts.by_load, self.best.worst) {
            self.best.worst = w;
            self.best.count.clone_from(&self.state.count);
            self.best.slot.clone_from(&self.state.slot);
        }
    }

    fn finish(&mut self, frame: Frame) -> LayerPlan {
        LayerPlan {
            experts: self.best.slot.clone(),
            largest: self.best.worst,
            bound: frame.bound,
            received: self.best.slot.len(),
            work: self.state.work,
        }
    }
}
