//! Experts on their way: what all ranks do in step with each other until a layer commits.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use moekit_fused_moe::{FusedMoe, PreparedExpert, TokenDispatcher};
use moekit_placement::{MigrationStage, Placement};
use moekit_routing::{LogicalExpert, Rank, RoutingTable, Topology};

use crate::expert::{ExpertError, ExpertId, decode, encode, prepared};
use crate::frame::{Control, Piece, Report};
use crate::layer::{LiveLayer, NextLayer, build};
use crate::stages::{self, Ends, Stage};
use crate::task::Task;
use crate::{ExpertSource, LiveConfig, LiveError, error::chain};

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
}

/// A layer that may be swapped in.
pub(crate) struct Commit {
    pub(crate) layer: usize,
    pub(crate) next: Arc<FusedMoe>,
    pub(crate) absent: BTreeSet<LogicalExpert>,
    pub(crate) received: usize,
}

/// The migration of some layers, one after the other.
#[derive(Debug)]
pub(crate) struct Migration {
    /// Layers that wait, with their placement.
    queue: VecDeque<(usize, Placement)>,
    current: Option<LayerMove>,
    fault: Option<String>,
    /// Bytes of pieces, sent and received since they were last asked for.
    pub(crate) sent_bytes: u64,
    pub(crate) received_bytes: u64,
}

/// One layer on its way.
#[derive(Debug)]
struct LayerMove {
    layer: usize,
    planning: Option<Task<Result<Vec<Stage>, String>>>,
    /// Stages that wait.
    stages: VecDeque<Stage>,
    /// Number of the stage under way.
    number: usize,
    stage: Option<StageMove>,
    /// Pieces that came before this rank had planned.
    incoming: BTreeMap<LogicalExpert, Incoming>,
}

#[derive(Debug, Default)]
struct Incoming {
    total: usize,
    bytes: Vec<u8>,
}

#[derive(Debug)]
struct Outgoing {
    round: usize,
    to: Rank,
    id: ExpertId,
    bytes: Bytes,
    sent: usize,
}

/// What a background encoding gives.
type Encoded = Task<Result<Bytes, ExpertError>>;
type Reading = Task<Result<Vec<(LogicalExpert, Arc<PreparedExpert>)>, String>>;

/// One stage on its way.
#[derive(Debug)]
struct StageMove {
    plan: MigrationStage,
    absent: BTreeSet<LogicalExpert>,
    round: usize,
    /// Whether all rounds are through, on all ranks.
    rounds_done: bool,
    /// Experts that this rank has yet to send, by round.
    to_send: VecDeque<(usize, Rank, LogicalExpert)>,
    encoding: Option<(usize, Rank, ExpertId, Encoded)>,
    /// The next expert, encoded while the one before is on its way.
    encoded: Option<Outgoing>,
    outgoing: Option<Outgoing>,
    decoding: Vec<(LogicalExpert, Task<Result<PreparedExpert, ExpertError>>)>,
    reading: Option<Reading>,
    arrived: BTreeMap<LogicalExpert, Arc<PreparedExpert>>,
    building: Option<Task<Result<FusedMoe, String>>>,
    built: Option<Arc<FusedMoe>>,
}

impl Migration {
    /// The migration of layers, in this order.
    pub(crate) fn new(queue: VecDeque<(usize, Placement)>) -> Self {
        Self {
            queue,
            current: None,
            fault: None,
            sent_bytes: 0,
            received_bytes: 0,
        }
    }

    /// Layer, layers left, stage and round.
    pub(crate) fn position(&self) -> (usize, usize, usize, usize) {
        let waiting = self.queue.len();
        match &self.current {
            Some(current) => {
                let round = current.stage.as_ref().map_or(0, |stage| stage.round);
                (current.layer, waiting, current.number, round)
            }
            None => {
                let next = self.queue.front().map_or(0, |(layer, _)| *layer);
                (next, waiting.saturating_sub(1), 0, 0)
            }
        }
    }

    /// Brings forward what goes on beside the forward passes, and says how far this rank is; the
    /// piece, if there is one, is to be sent with the report.
    pub(crate) fn advance(&mut self, here: &Here<'_>) -> (Report, Option<(Rank, Piece)>) {
        if self.fault.is_none() {
            match self.try_advance(here) {
                Ok(result) => {
                    if let Some((_, piece)) = &result.1 {
                        self.sent_bytes += piece.bytes.len() as u64;
                    }
                    return result;
                }
                Err(fault) => self.fault = Some(fault),
            }
        }
        let fault = self.fault.clone().unwrap_or_default();
        (Report::Fault(fault), None)
    }

    fn try_advance(&mut self, here: &Here<'_>) -> Result<(Report, Option<(Rank, Piece)>), String> {
        if self.current.is_none() {
            let Some((layer, target)) = self.queue.pop_front() else {
                return Ok((Report::Idle, None));
            };
            self.current = Some(LayerMove::start(layer, target, here)?);
        }
        let Some(current) = &mut self.current else {
            return Ok((Report::Idle, None));
        };
        if !current.planned(here)? {
            return Ok((Report::Sending(u64::MAX), None));
        }
        let layer = current.layer;
        let Some(stage) = &mut current.stage else {
            return Err(format!("the migration of layer {layer} has no stage"));
        };
        stage.encode_next(layer, here)?;
        stage.take_in(layer, &mut current.incoming, here)?;
        if stage.is_ready(layer, here)? {
            return Ok((Report::Ready, None));
        }
        let (left, piece) = stage.next_piece(here.config.bytes_per_step);
        Ok((Report::Sending(left), piece))
    }

    /// Takes in a piece from another rank.
    pub(crate) fn receive(
        &mut self,
        from: Rank,
        piece: Result<Option<Piece>, String>,
        here: &Here<'_>,
    ) {
        let result = match piece {
            Ok(None) => return,
            Ok(Some(piece)) => {
                self.received_bytes += piece.bytes.len() as u64;
                self.try_receive(&piece, here)
            }
            Err(problem) => Err(problem),
        };
        if let Err(problem) = result {
            self.fault
                .get_or_insert(format!("rank {from} sent something wrong: {problem}"));
        }
    }

    fn try_receive(&mut self, piece: &Piece, here: &Here<'_>) -> Result<(), String> {
        let current = self.current.as_mut().filter(|c| c.layer == piece.id.layer);
        let Some(current) = current else {
            return Err(format!("{} arrived, which is not under way", piece.id));
        };
        if piece.total as u64 > here.config.staging_bytes {
            return Err(format!(
                "{} takes {} bytes, the staging budget is {}",
                piece.id, piece.total, here.config.staging_bytes
            ));
        }
        let incoming = current.incoming.entry(piece.id.expert).or_default();
        if incoming.bytes.is_empty() {
            incoming.total = piece.total;
            let reserved = incoming.bytes.try_reserve_exact(piece.total);
            reserved
                .map_err(|_| format!("no memory for the {} bytes of {}", piece.total, piece.id))?;
        }
        let end = piece.offset.checked_add(piece.bytes.len());
        if (piece.total, piece.offset) != (incoming.total, incoming.bytes.len())
            || end.is_none_or(|end| end > piece.total)
        {
            return Err(format!(
                "bytes {}..{end:?} of {} of {} arrived, expected them from {} of {} on",
                piece.offset,
                piece.total,
                piece.id,
                incoming.bytes.len(),
                incoming.total
            ));
        }
        incoming.bytes.extend_from_slice(&piece.bytes);
        Ok(())
    }

    /// What follows from the reports of all ranks: a commit, if all are ready.
    pub(crate) fn agree(&mut self, controls: &[Control]) -> Option<Commit> {
        let all = |report: &Report| controls.iter().all(|control| control.report == *report);
        let current = self.current.as_mut()?;
        if all(&Report::Ready) {
            let stage = current.stage.take()?;
            let commit = Commit {
                layer: current.layer,
                next: stage.built?,
                absent: stage.absent,
                received: stage.arrived.len(),
            };
            current.number += 1;
            if current.stages.is_empty() {
                self.current = None;
            }
            return Some(commit);
        }
        if let Some(stage) = &mut current.stage
            && !stage.rounds_done
            && all(&Report::Sending(0))
        {
            stage.round += 1;
            stage.rounds_done = stage.round >= stage.plan.rounds.len();
        }
        None
    }

    /// Whether all layers have committed.
    pub(crate) fn is_done(&self) -> bool {
        self.current.is_none() && self.queue.is_empty()
    }
}

impl LayerMove {
    fn start(layer: usize, target: Placement, here: &Here<'_>) -> Result<Self, String> {
        let live = here
            .layers
            .get(layer)
            .ok_or_else(|| format!("there is no layer {layer}"))?;
        let current = live.current().ok_or("the layer has no table in force")?;
        let table = moekit_routing::ExpertRouting::routing_table(&*current);
        let ends = Ends {
            current: table.placement().clone(),
            absent: live.absent.clone(),
            target,
            topology: here.topology.clone(),
        };
        let bytes = here.expert_bytes.get(layer).copied().unwrap_or(0).max(1);
        let staging = here.config.staging_bytes / bytes;
        if staging == 0 {
            let error = LiveError::Staging {
                budget: here.config.staging_bytes,
                needed: bytes,
                layer,
            };
            return Err(error.to_string());
        }
        let staging = usize::try_from(staging).unwrap_or(usize::MAX);
        let plan = move || stages::plan(&ends, staging).map_err(|e| e.to_string());
        Ok(Self {
            layer,
            planning: Some(Task::spawn("planning a migration", here.step, plan)?),
            stages: VecDeque::new(),
            number: 0,
            stage: None,
            incoming: BTreeMap::new(),
        })
    }

    /// Whether a stage is under way; starts the next one.
    fn planned(&mut self, here: &Here<'_>) -> Result<bool, String> {
        if let Some(task) = &self.planning {
            let Some(stages) = finished(task, here)? else {
                return Ok(false);
            };
            self.stages = stages?.into();
            self.planning = None;
        }
        if self.stage.is_none()
            && let Some(stage) = self.stages.pop_front()
        {
            self.stage = Some(StageMove::start(self.layer, stage, here)?);
        }
        Ok(self.stage.is_some())
    }
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

impl StageMove {
    fn start(layer: usize, stage: Stage, here: &Here<'_>) -> Result<Self, String> {
        let rounds = stage.plan.rounds.iter().enumerate();
        let own = rounds.flat_map(|(round, transfers)| {
            let own = transfers.iter().filter(|t| t.from == here.rank);
            own.map(move |t| (round, t.to, t.expert))
        });
        let to_send = own.collect();
        let reads = stage
            .plan
            .reads
            .iter()
            .filter(|read| read.rank == here.rank);
        let reads: Vec<LogicalExpert> = reads.map(|read| read.expert).collect();
        let reading = match reads.is_empty() {
            true => None,
            false => Some(read(layer, reads, here)?),
        };
        Ok(Self {
            rounds_done: stage.plan.rounds.is_empty(),
            plan: stage.plan,
            absent: stage.absent,
            round: 0,
            to_send,
            encoding: None,
            encoded: None,
            outgoing: None,
            decoding: Vec::new(),
            reading,
            arrived: BTreeMap::new(),
            building: None,
            built: None,
        })
    }

    /// Keeps one expert ahead of the one that is being sent.
    fn encode_next(&mut self, layer: usize, here: &Here<'_>) -> Result<(), String> {
        loop {
            if let Some((round, to, id, task)) = &self.encoding {
                let Some(bytes) = finished(task, here)? else {
                    return Ok(());
                };
                self.encoded = Some(Outgoing {
                    round: *round,
                    to: *to,
                    id: *id,
                    bytes: bytes.map_err(|e| e.to_string())?,
                    sent: 0,
                });
                self.encoding = None;
            }
            if self.outgoing.is_none() {
                self.outgoing = self.encoded.take();
            }
            if self.encoded.is_some() {
                return Ok(());
            }
            let Some((round, to, expert)) = self.to_send.pop_front() else {
                return Ok(());
            };
            let held = here.layers[layer].held();
            let weights = held.into_iter().find(|(held, _)| *held == expert);
            let Some((_, weights)) = weights else {
                return Err(format!(
                    "expert {expert} of layer {layer} is to be sent, but not held"
                ));
            };
            let id = ExpertId { layer, expert };
            let encode = move || encode(id, &weights);
            let task = Task::spawn("encoding an expert", here.step, encode)?;
            self.encoding = Some((round, to, id, task));
            if !here.config.synchronous {
                return Ok(());
            }
        }
    }

    /// The next bytes of this round, and how many are left after them; [`u64::MAX`] if the expert
    /// of this round is not encoded yet.
    fn next_piece(&mut self, budget: usize) -> (u64, Option<(Rank, Piece)>) {
        if self.rounds_done {
            return (0, None);
        }
        let sends = |at: usize| at == self.round;
        let Some(outgoing) = self.outgoing.as_mut().filter(|o| sends(o.round)) else {
            let later = self.encoding.iter().any(|(round, ..)| sends(*round))
                || self
                    .to_send
                    .front()
                    .is_some_and(|(round, ..)| sends(*round));
            return (if later { u64::MAX } else { 0 }, None);
        };
        let end = outgoing
            .bytes
            .len()
            .min(outgoing.sent.saturating_add(budget));
        let piece = Piece {
            id: outgoing.id,
            offset: outgoing.sent,
            total: outgoing.bytes.len(),
            bytes: outgoing.bytes.slice(outgoing.sent..end),
        };
        outgoing.sent = end;
        let (to, left) = (outgoing.to, outgoing.bytes.len() - end);
        if left == 0 {
            self.outgoing = None;
        }
        (left as u64, Some((to, piece)))
    }

    /// Verifies experts whose last byte has come, and takes in what was read.
    fn take_in(
        &mut self,
        layer: usize,
        incoming: &mut BTreeMap<LogicalExpert, Incoming>,
        here: &Here<'_>,
    ) -> Result<(), String> {
        let whole = incoming.extract_if(.., |_, i| i.total > 0 && i.bytes.len() == i.total);
        for (expert, incoming) in whole {
            let expected =
                |t: &&moekit_placement::Transfer| t.to == here.rank && t.expert == expert;
            if self.plan.transfers().find(expected).is_none() {
                return Err(format!(
                    "expert {expert} of layer {layer} arrived, but is not to come"
                ));
            }
            let id = ExpertId { layer, expert };
            let bytes = Bytes::from(incoming.bytes);
            let verify = move || decode(id, &bytes);
            let task = Task::spawn("verifying an expert", here.step, verify)?;
            self.decoding.push((expert, task));
        }
        if let Some((expert, cut)) = incoming.first_key_value().filter(|_| self.rounds_done) {
            let error = ExpertError::Length {
                what: ExpertId {
                    layer,
                    expert: *expert,
                }
                .to_string(),
                got: cut.bytes.len(),
                expected: cut.total,
            };
            return Err(error.to_string());
        }
        let mut waiting = Vec::new();
        for (expert, task) in self.decoding.drain(..) {
            match finished(&task, here)? {
                Some(weights) => {
                    let weights = weights.map_err(|e| e.to_string())?;
                    self.arrived.insert(expert, Arc::new(weights));
                }
                None => waiting.push((expert, task)),
            }
        }
        self.decoding = waiting;
        if let Some(task) = &self.reading
            && let Some(read) = finished(task, here)?
        {
            self.arrived.extend(read?);
            self.reading = None;
        }
        Ok(())
    }

    /// Whether the layer that comes next is made.
    fn is_ready(&mut self, layer: usize, here: &Here<'_>) -> Result<bool, String> {
        if self.built.is_some() {
            return Ok(true);
        }
        let due = self.plan.transfers().filter(|t| t.to == here.rank).count();
        let reads = self
            .plan
            .reads
            .iter()
            .filter(|r| r.rank == here.rank)
            .count();
        if !self.rounds_done || self.arrived.len() < due + reads {
            return Ok(false);
        }
        if self.building.is_none() {
            self.building = Some(self.start_building(layer, here)?);
        }
        if let Some(task) = &self.building
            && let Some(next) = finished(task, here)?
        {
            self.built = Some(Arc::new(next?));
        }
        Ok(self.built.is_some())
    }

    fn start_building(
        &self,
        layer: usize,
        here: &Here<'_>,
    ) -> Result<Task<Result<FusedMoe, String>>, String> {
        let live = &here.layers[layer];
        let parts = live.parts.clone();
        let previous = live.current();
        let mut weights: BTreeMap<_, _> = live.held().into_iter().collect();
        weights.extend(self.arrived.iter().map(|(e, w)| (*e, w.clone())));
        let generation = live.generation() + 1;
        let (placement, topology) = (self.plan.placement.clone(), here.topology.clone());
        let (absent, selector) = (self.absent.clone(), here.config.selector.clone());
        let dispatcher = here.dispatcher.clone();
        let make = move || {
            let shared = parts.num_fused_shared();
            let table = RoutingTable::new(placement, topology, shared, generation);
            let next = NextLayer {
                table: Arc::new(table.map_err(|e| e.to_string())?),
                weights,
                absent,
                dispatcher,
                selector,
            };
            build(&parts, previous.as_deref(), &next).map_err(|e| chain(&e))
        };
        Task::spawn("preparing a layer", here.step, make)
    }
}

/// Reads experts from the checkpoint.
fn read(layer: usize, experts: Vec<LogicalExpert>, here: &Here<'_>) -> Result<Reading, String> {
    let source = here.source.clone();
    let read = move || {
        let one = |expert: LogicalExpert| match source.read(layer, expert) {
            Ok(weights) => Ok((expert, prepared(&weights).map_err(|e| chain(&e))?)),
            Err(error) => Err(format!(
                "expert {expert} of layer {layer} cannot be read: {}",
                chain(&*error)
            )),
        };
        experts.into_iter().map(one).collect()
    };
    Task::spawn("reading experts", here.step, read)
}
