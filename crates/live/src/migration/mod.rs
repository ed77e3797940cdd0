//! Experts on their way: what all ranks do in step with each other until layers commit.

mod assembly;
mod inbox;
mod outbox;
mod schedule;

use std::collections::BTreeSet;
use std::sync::Arc;

use moekit_fused_moe::{FusedMoe, TokenDispatcher};
use moekit_placement::Placement;
use moekit_routing::{ExpertRouting, LogicalExpert, Rank, Topology};

use self::assembly::Assembly;
use self::inbox::Inbox;
use self::outbox::Outbox;
use self::schedule::{Planned, Schedule};
use crate::frame::{Control, Piece, Report};
use crate::layer::LiveLayer;
use crate::stages::{self, Ends};
use crate::task::Task;
use crate::{ExpertSource, LiveConfig, LiveError};

/// What a migration sees of its rank.
pub(crate) struct Here<'a> {
    pub(crate) rank: Rank,
    pub(crate) step: u64,
    pub(crate) config: &'a LiveConfig,
    pub(crate) layers: &'a [LiveLayer],
    pub(crate) expert_bytes: &'a [u64],
    pub(crate) topology: &'a Topology,
    pub(crate) dispatcher: &'a Arc<dyn TokenDispatcher>,
    pub(crate) source: &'a Arc<dyn ExpertSource>,
    /// Held by every read that runs.
    pub(crate) reads: &'a Arc<()>,
}

/// A layer that may be swapped in.
pub(crate) struct Commit {
    pub(crate) layer: usize,
    pub(crate) next: Arc<FusedMoe>,
    pub(crate) absent: BTreeSet<LogicalExpert>,
    pub(crate) received: usize,
}

/// The migration of some layers, side by side as far as the budgets go.
#[derive(Debug)]
pub(crate) struct Migration {
    /// Layers that change, with their placement; those first that are to commit first.
    layers: Vec<(usize, Placement)>,
    planning: Option<Task<Result<Vec<Planned>, String>>>,
    /// Once this rank has planned.
    schedule: Option<Schedule>,
    outbox: Outbox,
    inbox: Inbox,
    assembly: Assembly,
    fault: Option<String>,
    is_done: bool,
    /// Bytes of pieces, sent and received since they were last asked for.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

impl Migration {
    /// The migration of layers, in this order.
    pub(crate) fn new(layers: Vec<(usize, Placement)>) -> Self {
        Self {
            layers,
            planning: None,
            schedule: None,
            outbox: Outbox::default(),
            inbox: Inbox::default(),
            assembly: Assembly::default(),
            fault: None,
            is_done: false,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// The first layer that has not committed, layers behind it, its stage and round.
    pub(crate) fn position(&self) -> (usize, usize, usize, usize) {
        let planned = self.schedule.as_ref().and_then(Schedule::first_open);
        planned.unwrap_or_else(|| {
            let first = self.layers.first().map_or(0, |(layer, _)| *layer);
            (first, self.layers.len().saturating_sub(1), 0, 0)
        })
    }

    /// Brings forward what goes on beside the forward passes.
    pub(crate) fn progress(&mut self, here: &Here<'_>) {
        if self.fault.is_none()
            && let Err(fault) = self.try_progress(here)
        {
            self.fault = Some(fault);
        }
    }

    fn try_progress(&mut self, here: &Here<'_>) -> Result<(), String> {
        let schedule = match &mut self.schedule {
            Some(schedule) => schedule,
            None => {
                let task = match &self.planning {
                    Some(task) => task,
                    None => {
                        let plan = planning(&self.layers, here)?;
                        let task = Task::spawn("planning a migration", here.step, plan)?;
                        self.planning.insert(task)
                    }
                };
                let Some(stages) = finished(task, here)? else {
                    return Ok(());
                };
                self.planning = None;
                let budget = here.config.bytes_per_step as u64;
                let staging = here.config.staging_bytes;
                self.schedule
                    .insert(Schedule::new(stages?, budget, staging))
            }
        };
        for index in schedule.admit() {
            self.outbox.add(schedule.slots_of(index, here.rank));
            self.assembly.open(index, schedule.stage(index), here);
        }
        self.outbox.encode(&schedule.window(), here)?;
        let assembly = &self.assembly;
        for (id, weights) in self.inbox.verify(|id| assembly.expects(id), here)? {
            self.assembly.arrived(id, weights);
        }
        for (index, id) in self.assembly.missing() {
            if schedule.is_through(index) {
                self.inbox.check_whole(id)?;
            }
        }
        self.assembly.progress(here)
    }

    /// How far this rank is, and the pieces that are to be sent with it.
    pub(crate) fn report(&mut self, here: &Here<'_>) -> (Report, Vec<(Rank, Piece)>) {
        self.progress(here);
        if let Some(fault) = &self.fault {
            return (Report::Fault(fault.clone()), Vec::new());
        }
        let Some(schedule) = &self.schedule else {
            return (Report::Planning, Vec::new());
        };
        let (pieces, sent) = self.outbox.pieces(&schedule.window());
        let bytes = pieces.iter().map(|(_, piece)| piece.bytes.len() as u64);
        self.sent_bytes += bytes.sum::<u64>();
        let ready = self.assembly.ready();
        (Report::Moving { sent, ready }, pieces)
    }

    /// Takes in the pieces from another rank, which may have planned before this one.
    pub(crate) fn receive(
        &mut self,
        from: Rank,
        pieces: Result<Vec<Piece>, String>,
        config: &LiveConfig,
    ) {
        let result = pieces.and_then(|pieces| {
            pieces.into_iter().try_for_each(|piece| {
                self.received_bytes += piece.bytes.len() as u64;
                self.inbox.receive(&piece, config.staging_bytes)
            })
        });
        if let Err(problem) = result {
            self.fault
                .get_or_insert(format!("rank {from} sent something wrong: {problem}"));
        }
    }

    /// What follows from the reports of all ranks: commits of what is ready everywhere.
    pub(crate) fn agree(&mut self, controls: &[Control]) -> Vec<Commit> {
        let Some(schedule) = &mut self.schedule else {
            return Vec::new();
        };
        let moving = |control: &Control| match &control.report {
            Report::Moving { sent, ready } => Some((*sent, BTreeSet::from_iter(ready.clone()))),
            _ => None,
        };
        let Some(reports): Option<Vec<_>> = controls.iter().map(moving).collect() else {
            return Vec::new();
        };
        let is_ready = |index: &usize| reports.iter().all(|(_, ready)| ready.contains(index));
        let ready: Vec<usize> = (0..schedule.len()).filter(is_ready).collect();
        let mut commits = Vec::with_capacity(ready.len());
        for index in ready {
            schedule.commit(index);
            commits.extend(self.assembly.close(index));
        }
        if reports.iter().all(|(sent, _)| *sent) {
            schedule.advance();
        }
        self.is_done = schedule.is_done();
        commits
    }

    /// Whether all layers have committed, as all ranks know.
    pub(crate) fn is_done(&self) -> bool {
        self.is_done
    }
}

/// Plans the stages of all layers, each for itself.
fn planning(
    layers: &[(usize, Placement)],
    here: &Here<'_>,
) -> Result<impl FnOnce() -> Result<Vec<Planned>, String> + Send + use<>, String> {
    let ends = |(layer, target): &(usize, Placement)| {
        let layer = *layer;
        let live = here
            .layers
            .get(layer)
            .ok_or_else(|| format!("there is no layer {layer}"))?;
        let current = live.current().ok_or("the layer has no table in force")?;
        let ends = Ends {
            current: current.routing_table().placement().clone(),
            absent: live.absent.clone(),
            target: target.clone(),
            topology: here.topology.clone(),
            // A plan moves what there is; experts are read into the slots reserved for them.
            reads: current.routing_table().placement() == target,
        };
        let bytes = here.expert_bytes.get(layer).copied().unwrap_or(0).max(1);
        let budget = here.config.staging_bytes;
        let staging = usize::try_from(budget / bytes).unwrap_or(usize::MAX);
        if staging == 0 {
            let needed = bytes;
            let error = LiveError::Staging {
                budget,
                needed,
                layer,
            };
            return Err(error.to_string());
        }
        Ok((layer, ends, staging, bytes))
    };
    let layers: Vec<_> = layers.iter().map(ends).collect::<Result<_, String>>()?;
    Ok(move || {
        let mut planned = Vec::new();
        for (layer, ends, staging, expert_bytes) in layers {
            let stages = stages::plan(&ends, staging).map_err(|error| error.to_string())?;
            let stages = stages.into_iter().enumerate();
            planned.extend(stages.map(|(number, stage)| Planned {
                layer,
                number,
                stage,
                expert_bytes,
            }));
        }
        Ok(planned)
    })
}

/// The result of a task, `None` while it is not done.
fn finished<T: Send + 'static>(task: &Task<T>, here: &Here<'_>) -> Result<Option<T>, String> {
    match task.poll(here.config.synchronous) {
        Some(result) => result.map(Some),
        None if here.step - task.since > here.config.deadline_steps => Err(format!(
            "what began in step {} beside the forward passes has not ended in {} steps",
            task.since, here.config.deadline_steps
        )),
        None => Ok(None),
    }
}
