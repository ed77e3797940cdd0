//! What rank 0 decides, and nobody else.

use moekit_placement::{Placement, PlacementError};
use moekit_routing::Rank;

use crate::LiveConfig;
use crate::change::Detector;
use crate::frame::Command;
use crate::load::LoadWindow;
use crate::planner::{Plan, Snapshot};
use crate::state::LoadReport;
use crate::task::{MAX_ABANDONED, Task};

/// Rank 0 of a group.
#[derive(Debug)]
pub(crate) struct Leader {
    window: LoadWindow,
    detector: Option<Detector>,
    task: Option<Task<Result<Plan, PlacementError>>>,
    /// What the others are to hear of a plan that has begun, or could not.
    news: Option<Command>,
    /// Planners that were given up, by this rank in any group.
    pub(crate) abandoned: usize,
    /// Whether the ranks have changed, and no plan has answered it yet.
    reshape: bool,
    /// Whether the plan under way answers such a change.
    answers: bool,
    /// Whether something failed and is due again.
    again: bool,
    /// Whether the migration under way is that of a plan.
    adopted: bool,
    /// Whether the last thing that was tried was to read experts that nobody holds, and failed.
    unread: bool,
    /// Whether a trigger that looks at the balance has fired.
    alarm: bool,
    /// Until which step such a trigger is not heeded: a plan that it led to was skipped.
    quiet_until: u64,
    /// Ranks that wanted to leave in the last step.
    leaving: Vec<bool>,
    shape: [usize; 3],
    delivered_at: u64,
}

/// What rank 0 looks at between two steps.
pub(crate) struct View<'a> {
    pub(crate) config: &'a LiveConfig,
    /// Steps done.
    pub(crate) step: u64,
    pub(crate) placements: Vec<Placement>,
    pub(crate) expert_bytes: &'a [u64],
    /// Ranks that want to leave, `[R]`.
    pub(crate) leaving: &'a [bool],
    pub(crate) waiting: usize,
    /// Whether any layer has experts that nobody holds.
    pub(crate) any_absent: bool,
    /// Whether a migration is under way.
    pub(crate) moving: bool,
    /// From which step on something may be tried, after a failure.
    pub(crate) retry: Option<u64>,
}

impl View<'_> {
    /// Whether nothing is under way, and nothing has failed a short while ago.
    fn may_begin(&self) -> bool {
        !self.moving && self.retry.is_none_or(|at| self.step >= at)
    }

    /// Whether members wait to be let in, or leaving ones hold nothing more.
    fn is_other_group_due(&self) -> bool {
        let holds = |rank: usize| {
            let slots =
                |p: &Placement| p.experts_of(Rank::new(rank)).is_some_and(|s| !s.is_empty());
            self.placements.iter().any(slots)
        };
        let mut leaving = (0..self.leaving.len()).filter(|&rank| self.leaving[rank]);
        self.waiting > 0 || leaving.any(|rank| !holds(rank))
    }
}

impl Leader {
    /// # Arguments
    ///
    /// - `shape` - `[layers, experts, ranks]`.
    /// - `reshape` - whether the ranks have changed.
    pub(crate) fn new(config: &LiveConfig, shape: [usize; 3], reshape: bool, step: u64) -> Self {
        Self {
            window: LoadWindow::new(config.window, shape[0], shape[1]),
            detector: config.triggers.change.map(Detector::new),
            task: None,
            news: None,
            abandoned: 0,
            reshape,
            answers: false,
            again: false,
            adopted: false,
            unread: false,
            alarm: false,
            quiet_until: step,
            leaving: vec![false; shape[2]],
            shape,
            delivered_at: step,
        }
    }

    /// Takes in the loads of all ranks, `[L * E]` then `[L * R]` each, or empty.
    pub(crate) fn deliver(
        &mut self,
        loads: &[Vec<u64>],
        step: u64,
        config: &LiveConfig,
    ) -> Option<LoadReport> {
        let [layers, experts, ranks] = self.shape;
        let mut sum = vec![0_u64; layers * (experts + ranks)];
        let size = sum.len();
        let whole = loads.iter().filter(|load| load.len() == size);
        let mut any = false;
        for load in whole {
            any = true;
            sum.iter_mut().zip(load).for_each(|(sum, n)| *sum += n);
        }
        if !any {
            return None;
        }
        let (counts, served) = sum.split_at(layers * experts);
        self.window.push(counts);
        let tokens = served.chunks_exact(ranks).map(<[u64]>::to_vec).collect();
        let report = LoadReport::new(step - self.delivered_at, tokens);
        self.delivered_at = step;
        let below = config.triggers.balance_below;
        self.alarm |= below.is_some_and(|limit| report.aggregate < limit);
        if let Some(detector) = &mut self.detector {
            self.alarm |= detector.push(report.aggregate);
        }
        Some(report)
    }

    /// After a migration, that of a plan or one that reads what nobody holds, or its failure.
    pub(crate) fn migration_ended(&mut self, failed: bool) {
        let adopted = std::mem::take(&mut self.adopted);
        self.unread = failed && !adopted;
        if failed {
            self.plan_failed();
        } else {
            self.again = false;
            self.answers = false;
        }
        self.calm();
    }

    /// Whatever is under way is due again, with what it was to answer.
    fn plan_failed(&mut self) {
        self.again = true;
        self.reshape |= std::mem::take(&mut self.answers);
    }

    /// Looks at the balance anew.
    fn calm(&mut self) {
        if let Some(detector) = &mut self.detector {
            detector.reset();
        }
        self.alarm = false;
    }

    fn skip(&mut self, view: &View<'_>, reason: String) -> Command {
        self.answers = false;
        self.calm();
        self.quiet_until = view.step + view.config.retry_steps;
        Command::Skip { reason }
    }

    /// What all ranks do next, if anything changes.
    pub(crate) fn decide(&mut self, view: &View<'_>) -> Option<Command> {
        if let Some(command) = self.harvest(view) {
            self.news = None;
            return Some(command);
        }
        if let Some(news) = self.news.take() {
            return Some(news);
        }
        if self.task.is_some() || !view.may_begin() {
            return None;
        }
        if view.any_absent && !self.are_ranks_first(view) {
            return Some(Command::Restore);
        }
        view.is_other_group_due().then_some(Command::Regroup)
    }

    /// Whether a plan is to be carried out whatever it costs: the ranks have changed, or will.
    fn is_mandatory(&self, view: &View<'_>) -> bool {
        self.reshape || view.leaving.contains(&true)
    }

    /// Whether ranks that come or go have precedence over experts that nobody holds: when these
    /// could not be read, before the next attempt.
    fn are_ranks_first(&self, view: &View<'_>) -> bool {
        self.unread && (view.is_other_group_due() || self.is_mandatory(view))
    }

    /// Begins to plan beside the next forward passes, if it is time to. Called when the loads of
    /// the step have come, so that the plan sees them.
    pub(crate) fn plan(&mut self, view: &View<'_>) {
        // A rank that stays after all may have been left without experts.
        let stays = |(was, is): (&bool, &bool)| *was && !*is;
        self.reshape |= self.leaving.iter().zip(view.leaving).any(stays);
        self.leaving = view.leaving.to_vec();
        let is_busy = self.task.is_some() || self.news.is_some();
        if is_busy || !view.may_begin() || view.is_other_group_due() {
            return;
        }
        if view.any_absent && !self.are_ranks_first(view) {
            return;
        }
        let mandatory = self.is_mandatory(view);
        let interval = view.config.triggers.interval;
        let due = interval.is_some_and(|every| view.step > 0 && view.step.is_multiple_of(every));
        let alarm = self.alarm && view.step >= self.quiet_until;
        if mandatory || self.again || alarm || due {
            self.news = Some(match self.start(view, mandatory) {
                Ok(()) => Command::Planning,
                Err(reason) => Command::Fail { reason },
            });
        }
    }

    fn start(&mut self, view: &View<'_>, mandatory: bool) -> Result<(), String> {
        self.alarm = false;
        self.unread = false;
        if self.abandoned >= MAX_ABANDONED {
            return Err(format!(
                "{} planners never returned, no other is started",
                self.abandoned
            ));
        }
        let ranks = 0..view.leaving.len();
        let active: Vec<Rank> = ranks.filter(|&r| !view.leaving[r]).map(Rank::new).collect();
        if active.is_empty() {
            return Err("all ranks want to leave, one must stay".to_owned());
        }
        let snapshot = Snapshot {
            current: view.placements.clone(),
            expert_bytes: view.expert_bytes.to_vec(),
            load: self.window.past(),
            load_steps: self.window.weight() * view.config.load_interval as f64,
            active,
            mandatory,
            ..Snapshot::new(view.config)
        };
        let task = Task::spawn("the planner", view.step, move || snapshot.plan())?;
        self.task = Some(task);
        self.again = false;
        self.answers = mandatory;
        self.reshape = false;
        Ok(())
    }

    /// What came of the planner, if it is done or given up.
    fn harvest(&mut self, view: &View<'_>) -> Option<Command> {
        let task = self.task.as_ref()?;
        let Some(result) = task.poll(view.config.synchronous) else {
            let (since, deadline) = (task.since, view.config.deadline_steps);
            if view.step - since <= deadline {
                return None;
            }
            self.task = None;
            self.abandoned += 1;
            self.plan_failed();
            let reason = format!(
                "the planner that began in step {since} has not returned in {deadline} steps"
            );
            return Some(Command::Fail { reason });
        };
        self.task = None;
        let plan = match result {
            Ok(Ok(plan)) => plan,
            Ok(Err(error)) => return Some(self.failed(error.to_string())),
            Err(panic) => return Some(self.failed(panic)),
        };
        if plan.target == view.placements {
            let reason = "it is the placement in force".to_owned();
            return Some(self.skip(view, reason));
        }
        let objection = view.config.cost.filter(|_| !plan.mandatory);
        let objection = objection.and_then(|cost| cost.objection(plan.gain, plan.bytes));
        if let Some(reason) = objection {
            return Some(self.skip(view, reason));
        }
        self.adopted = true;
        Some(Command::Adopt {
            layers: plan.target,
            order: plan.order,
            gain: plan.gain,
        })
    }

    fn failed(&mut self, reason: String) -> Command {
        self.plan_failed();
        Command::Fail { reason }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use moekit_placement::{ModelPlacement, PlacementRequest, PlacementStrategy, typetag};

    use super::*;

    /// Experts one by one.
    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct InOrder;

    #[typetag::serde(name = "live-leader-test-in-order")]
    impl PlacementStrategy for InOrder {
        fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
            let experts = request.num_logical_experts();
            let slots = (0..experts).collect();
            let layer = Placement::new(experts, slots, request.rank_offsets())?;
            ModelPlacement::new(vec![layer])
        }
    }

    #[test]
    fn a_plan_that_was_not_carried_out_is_made_again_and_no_other() {
        let config = LiveConfig::new(Arc::new(InOrder)).with_synchronous(true);
        // The ranks have changed, which one plan is to answer.
        let mut leader = Leader::new(&config, [1, 2, 2], true, 0);
        let step = |leader: &mut Leader, step, retry| {
            let view = View {
                config: &config,
                step,
                placements: vec![Placement::from_ranks(2, &[[1], [0]]).unwrap()],
                expert_bytes: &[1],
                leaving: &[false; 2],
                waiting: 0,
                any_absent: false,
                moving: false,
                retry,
            };
            let command = leader.decide(&view);
            leader.plan(&view);
            command
        };
        assert_eq!(step(&mut leader, 1, None), None);
        let adopt = step(&mut leader, 2, None);
        assert!(matches!(adopt, Some(Command::Adopt { .. })), "{adopt:?}");
        // Some rank could not.
        leader.migration_ended(true);
        assert_eq!(step(&mut leader, 3, Some(5)), None);
        assert_eq!(step(&mut leader, 4, Some(5)), None);
        assert_eq!(step(&mut leader, 5, Some(5)), None);
        assert_eq!(step(&mut leader, 6, Some(5)), adopt);
        leader.migration_ended(false);
        assert_eq!(step(&mut leader, 7, None), None);
        assert_eq!(step(&mut leader, 8, None), None);
    }
}
