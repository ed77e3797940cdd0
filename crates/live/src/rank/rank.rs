use std::sync::Arc;
use std::time::Instant;

use burn::tensor::Tensor;
use moekit_fused_moe::{ForwardOptions, FusedMoe};
use moekit_parallel::Buffer;
use moekit_placement::{ModelPlacement, Placement};
use moekit_routing::{ExpertRouting, LogicalExpert, Rank};
use xxhash_rust::xxh3::xxh3_64;

use crate::error::chain;
use crate::form::{InGroup, form};
use crate::frame::{Command, Control, Frame, Report, encode_control, parse, put};
use crate::group::Membership;
use crate::layer::{LayerParts, LiveLayer, LiveOutput, SharedLayer, check_parts, forward};
use crate::leader::{Leader, View};
use crate::load::LoadWatcher;
use crate::migration::{Here, Migration};
use crate::state::{Event, RebalanceState, StepReport};
use crate::{ExpertSource, LiveConfig, LiveError, telemetry};

/// One rank of a live group: its layers, and its part in keeping them balanced.
///
/// All ranks do the same: forward passes of the layers in the same order, then
/// [`end_step`](Self::end_step), again and again, with tokens or without. After an error that
/// [ends the group](LiveError::ends_group), those that are left [`recover`](Self::recover) and go on
/// with the step that [`step`](Self::step) names: a step whose forward passes have all returned is
/// not repeated.
#[derive(Debug)]
pub struct LiveRank {
    membership: Option<Box<dyn Membership>>,
    config: LiveConfig,
    source: Arc<dyn ExpertSource>,
    layers: Vec<LiveLayer>,
    initial: ModelPlacement,
    group: Option<InGroup>,
    step: u64,
    watching: bool,
    leaving: bool,
    state: RebalanceState,
    watcher: Option<LoadWatcher>,
    migration: Option<Migration>,
    leader: Option<Leader>,
    /// Planners that were given up while this rank was rank 0 of an earlier group.
    abandoned_planners: usize,
    /// Which ranks said that they want to leave, in the last step.
    leaving_ranks: Vec<bool>,
}

impl LiveRank {
    /// Enters the group, or waits to be let in. The members of the first group read the experts of
    /// the first placement; whoever comes later holds nothing until the group rebalances.
    ///
    /// # Arguments
    ///
    /// - `layers` - the MoE layers in order, with the same number of experts.
    /// - `initial` - the placement of the first group, over its ranks.
    ///
    /// # Errors
    ///
    /// If settings make no sense or layers and placement do not fit; if the staging budget holds
    /// no expert; if an expert cannot be read, on any rank.
    pub fn start(
        membership: impl Membership + 'static,
        layers: Vec<LayerParts>,
        source: Arc<dyn ExpertSource>,
        initial: ModelPlacement,
        config: LiveConfig,
    ) -> Result<Self, LiveError> {
        config.check()?;
        check_parts(&layers)?;
        if initial.num_layers() != layers.len() {
            return Err(LiveError::Config(format!(
                "the first placement has {} layers, the rank {}",
                initial.num_layers(),
                layers.len()
            )));
        }
        let mut rank = Self {
            membership: Some(Box::new(membership)),
            config,
            source,
            layers: layers.into_iter().map(LiveLayer::new).collect(),
            initial,
            group: None,
            step: 0,
            watching: true,
            leaving: false,
            state: RebalanceState::Idle,
            watcher: None,
            migration: None,
            leader: None,
            abandoned_planners: 0,
            leaving_ranks: Vec::new(),
        };
        rank.enter()?;
        Ok(rank)
    }

    /// The output of one layer for a batch of this rank's tokens.
    ///
    /// # Arguments
    ///
    /// - `layer` - position of the layer.
    /// - `hidden` - `[num_tokens, hidden_size]`; no token is legal.
    ///
    /// # Errors
    ///
    /// Those of [`FusedMoe::forward`]; they end the group.
    pub fn forward(
        &self,
        layer: usize,
        hidden: Tensor<2>,
        options: ForwardOptions,
    ) -> Result<LiveOutput, LiveError> {
        let current = self.layer(layer)?;
        let output = forward(layer, &current, hidden, options)?;
        if let Some(watcher) = self.watcher.as_ref().filter(|_| self.watching) {
            let table = current.routing_table();
            let (load, ids) = (&output.inner.load, &output.inner.physical_ids);
            watcher.record(layer, load, ids, &table);
        }
        Ok(output)
    }

    /// The layer in force: weights and table together, for any thread.
    ///
    /// # Errors
    ///
    /// If there is no such layer, or the rank is in no group.
    pub fn layer(&self, layer: usize) -> Result<Arc<FusedMoe>, LiveError> {
        let num_layers = self.layers.len();
        let live = self
            .layers
            .get(layer)
            .ok_or(LiveError::UnknownLayer { layer, num_layers })?;
        live.current()
            .ok_or(LiveError::NoGroup("it has not entered one"))
    }

    /// The layer for readers of other threads, which see every later commit through it.
    ///
    /// # Errors
    ///
    /// If there is no such layer.
    pub fn shared_layer(&self, layer: usize) -> Result<SharedLayer, LiveError> {
        let num_layers = self.layers.len();
        let live = self.layers.get(layer);
        let live = live.ok_or(LiveError::UnknownLayer { layer, num_layers })?;
        Ok(live.shared())
    }

    /// Whether forward passes count as load from now on: not while warming up.
    pub fn set_watching(&mut self, watching: bool) {
        self.watching = watching;
    }

    /// Asks to leave: the group moves this rank's experts elsewhere and lets it go, which
    /// [`Event::Left`] tells. Until then it goes on as before.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// What the rebalancer does.
    pub fn state(&self) -> &RebalanceState {
        &self.state
    }

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// This rank's number in the group, `None` if it is in none.
    pub fn rank(&self) -> Option<Rank> {
        self.group.as_ref().map(InGroup::rank)
    }

    /// The member of each rank of the group.
    pub fn members(&self) -> &[u64] {
        self.group.as_ref().map_or(&[], |group| &group.members)
    }

    /// The placement in force of each layer.
    pub fn placements(&self) -> Vec<Placement> {
        let layers = self.layers.iter().filter_map(LiveLayer::current);
        layers
            .map(|l| l.routing_table().placement().clone())
            .collect()
    }

    /// Experts of a layer that no rank holds, ascending: their tokens are not served until they
    /// are read again.
    pub fn absent(&self, layer: usize) -> Vec<LogicalExpert> {
        let layer = self.layers.get(layer);
        layer.map_or_else(Vec::new, |layer| layer.absent.iter().copied().collect())
    }

    /// Between two forward passes: exchanges with all ranks how far they are, sends and receives
    /// experts within the budget, and commits what has arrived everywhere.
    ///
    /// # Errors
    ///
    /// If the group has ended, or ranks disagree, which ends it.
    pub fn end_step(&mut self) -> Result<StepReport, LiveError> {
        let span = tracing::debug_span!("end_step", step = self.step + 1);
        let _entered = span.enter();
        let result = self.try_end_step();
        if let (Err(error), Some(group)) = (&result, &self.group) {
            group.comm.abort(&chain(error));
        }
        result
    }

    fn try_end_step(&mut self) -> Result<StepReport, LiveError> {
        let start = Instant::now();
        self.step += 1;
        let mut report = StepReport {
            step: self.step,
            ..StepReport::default()
        };
        let (own, messages, lengths) = self.messages()?;
        let group = self.group()?;
        let before = start.elapsed();
        let exchange = Instant::now();
        let blocks = group.comm.all_to_all_v(Buffer::from(messages), &lengths)?;
        report.exchange = exchange.elapsed();
        let start = Instant::now();
        let frames = self.frames(&own, blocks.into_buffers())?;
        self.apply(&own, frames, &mut report)?;
        report.state = self.state.clone();
        report.work = before + start.elapsed();
        telemetry::step(&report, self.rank());
        Ok(report)
    }

    fn group(&self) -> Result<&InGroup, LiveError> {
        self.group
            .as_ref()
            .ok_or(LiveError::NoGroup("it has left, or must recover"))
    }

    /// What this rank says, and the message for each rank.
    fn messages(&mut self) -> Result<(Control, Vec<u8>, Vec<usize>), LiveError> {
        let command = self.command()?;
        let (report, piece) = self.advance()?;
        let control = Control {
            step: self.step,
            digest: self.digest(),
            report,
            leaving: self.leaving,
            command,
        };
        let due = self.step.is_multiple_of(self.config.load_interval);
        let load = match &self.watcher {
            Some(watcher) if due => watcher.take(),
            _ => Vec::new(),
        };
        let bytes = encode_control(&control)?;
        let size = self.group()?.comm.size();
        let (mut out, mut lengths) = (Vec::new(), Vec::with_capacity(size));
        for to in 0..size {
            let start = out.len();
            let load: &[u64] = if to == 0 { &load } else { &[] };
            let piece = piece.as_ref().filter(|(rank, _)| rank.index() == to);
            put(&mut out, &bytes, load, piece.map(|(_, piece)| piece));
            lengths.push(out.len() - start);
        }
        Ok((control, out, lengths))
    }

    /// The decision of rank 0.
    fn command(&mut self) -> Result<Option<Command>, LiveError> {
        let waiting = self.membership.as_ref().map_or(0, |m| m.num_waiting());
        let placements = match self.leader {
            Some(_) => self.placements(),
            None => return Ok(None),
        };
        let (Some(leader), Some(group)) = (&mut self.leader, &self.group) else {
            return Ok(None);
        };
        let view = View {
            config: &self.config,
            step: self.step,
            placements,
            expert_bytes: &group.expert_bytes,
            leaving: &self.leaving_ranks,
            waiting,
            any_absent: self.layers.iter().any(|layer| !layer.absent.is_empty()),
            moving: self.migration.is_some(),
            retry: match self.state {
                RebalanceState::Failed { retry, .. } => Some(retry),
                _ => None,
            },
        };
        Ok(leader.decide(&view))
    }

    fn advance(&mut self) -> Result<(Report, Option<(Rank, crate::frame::Piece)>), LiveError> {
        let Some(mut migration) = self.migration.take() else {
            return Ok((Report::Idle, None));
        };
        let said = migration.advance(&self.here()?);
        self.migration = Some(migration);
        Ok(said)
    }

    fn here(&self) -> Result<Here<'_>, LiveError> {
        let group = self.group()?;
        Ok(Here {
            rank: group.rank(),
            step: self.step,
            config: &self.config,
            layers: &self.layers,
            expert_bytes: &group.expert_bytes,
            topology: &group.topology,
            dispatcher: &group.dispatcher,
            source: &self.source,
        })
    }

    /// A number of all tables in force.
    fn digest(&self) -> u64 {
        let layers = self.layers.iter();
        let generations = layers.flat_map(|layer| layer.generation().to_le_bytes());
        xxh3_64(&generations.collect::<Vec<u8>>())
    }

    /// The messages of all ranks, which must be at the same point.
    fn frames(&self, own: &Control, blocks: Vec<Buffer>) -> Result<Vec<Frame>, LiveError> {
        let mut frames = Vec::with_capacity(blocks.len());
        for (rank, block) in blocks.into_iter().enumerate() {
            let rank = Rank::new(rank);
            let frame = parse(rank, &block.to_bytes())?;
            for (what, theirs, ours) in [
                ("step", frame.control.step, own.step),
                ("tables of number", frame.control.digest, own.digest),
            ] {
                if theirs != ours {
                    return Err(LiveError::Disagreement {
                        rank,
                        what,
                        theirs,
                        ours,
                    });
                }
            }
            frames.push(frame);
        }
        Ok(frames)
    }

    /// What follows from the messages: a function of what all ranks know alike.
    fn apply(
        &mut self,
        own: &Control,
        frames: Vec<Frame>,
        report: &mut StepReport,
    ) -> Result<(), LiveError> {
        self.leaving_ranks = frames.iter().map(|f| f.control.leaving).collect();
        let mut controls = Vec::with_capacity(frames.len());
        let mut loads = Vec::with_capacity(frames.len());
        let mut pieces = Vec::with_capacity(frames.len());
        for frame in frames {
            controls.push(frame.control);
            loads.push(frame.load);
            pieces.push(frame.piece);
        }
        let due = own.step.is_multiple_of(self.config.load_interval);
        if let Some(leader) = self.leader.as_mut().filter(|_| due) {
            report.balance = leader.deliver(&loads, self.step, &self.config);
        }
        self.migrate(&controls, pieces, report)?;
        let command = controls.into_iter().next().and_then(|first| first.command);
        match command {
            Some(command) => self.obey(command, report),
            None => Ok(()),
        }
    }

    /// Takes in pieces, and commits or gives up.
    fn migrate(
        &mut self,
        controls: &[Control],
        pieces: Vec<Result<Option<crate::frame::Piece>, String>>,
        report: &mut StepReport,
    ) -> Result<(), LiveError> {
        let Some(mut migration) = self.migration.take() else {
            return Ok(());
        };
        let fault = controls.iter().enumerate().find_map(|(rank, control)| {
            let Report::Fault(reason) = &control.report else {
                return None;
            };
            Some(format!("rank {rank}: {reason}"))
        });
        if fault.is_none() {
            let here = self.here()?;
            for (from, piece) in pieces.into_iter().enumerate() {
                migration.receive(Rank::new(from), piece, &here);
            }
        }
        report.sent_bytes = std::mem::take(&mut migration.sent_bytes);
        report.received_bytes = std::mem::take(&mut migration.received_bytes);
        if let Some(reason) = fault {
            if let Some(leader) = &mut self.leader {
                leader.migration_ended(true);
            }
            self.fail(reason, report);
            return Ok(());
        }
        if let Some(commit) = migration.agree(controls) {
            let layer = &mut self.layers[commit.layer];
            layer.commit(commit.next, commit.absent);
            report.events.push(Event::Committed {
                layer: commit.layer,
                generation: layer.generation(),
                received: commit.received,
            });
        }
        if migration.is_done() {
            self.state = RebalanceState::Idle;
            if let Some(leader) = &mut self.leader {
                leader.migration_ended(false);
            }
        } else {
            self.keep(migration);
        }
        Ok(())
    }

    fn keep(&mut self, migration: Migration) {
        let (layer, layers_left, stage, round) = migration.position();
        self.state = RebalanceState::Moving {
            layer,
            layers_left,
            stage,
            round,
        };
        self.migration = Some(migration);
    }

    fn fail(&mut self, reason: String, report: &mut StepReport) {
        tracing::warn!(step = self.step, reason, "rebalancing failed");
        report.events.push(Event::Failed {
            reason: reason.clone(),
        });
        self.state = RebalanceState::Failed {
            reason,
            step: self.step,
            retry: self.step + self.config.retry_steps,
        };
    }

    /// Does what rank 0 has decided.
    fn obey(&mut self, command: Command, report: &mut StepReport) -> Result<(), LiveError> {
        match command {
            Command::Planning => {
                self.state = RebalanceState::Planning { since: self.step };
                report.events.push(Event::PlanStarted);
            }
            Command::Skip { reason } => {
                tracing::info!(step = self.step, reason, "plan skipped");
                self.state = RebalanceState::Idle;
                report.events.push(Event::PlanSkipped { reason });
            }
            Command::Fail { reason } => self.fail(reason, report),
            Command::Adopt { layers, gain } => self.adopt(layers, gain, report),
            Command::Restore => self.restore(),
            Command::Regroup => self.regroup(report)?,
        }
        Ok(())
    }

    fn adopt(&mut self, next: Vec<Placement>, gain: f64, report: &mut StepReport) {
        let current = self.placements();
        let fits = |(old, new): (&Placement, &Placement)| {
            old.num_ranks() == new.num_ranks()
                && old.num_logical_experts() == new.num_logical_experts()
        };
        if next.len() != current.len() || !current.iter().zip(&next).all(fits) {
            let reason = "the plan has other layers, experts or ranks than the group".to_owned();
            return self.fail(reason, report);
        }
        let changed = |(l, next): (usize, Placement)| (current[l] != next).then_some((l, next));
        let queue: std::collections::VecDeque<_> =
            next.into_iter().enumerate().filter_map(changed).collect();
        let layers = queue.len();
        tracing::info!(step = self.step, layers, gain, "plan adopted");
        report.events.push(Event::PlanAdopted { layers, gain });
        self.keep(Migration::new(queue));
    }

    /// Begins to read what nobody holds into the slots that are reserved for it.
    fn restore(&mut self) {
        let placements = self.placements();
        let layers = self.layers.iter().zip(placements).enumerate();
        let absent = layers.filter(|(_, (layer, _))| !layer.absent.is_empty());
        let queue = absent.map(|(l, (_, placement))| (l, placement)).collect();
        self.keep(Migration::new(queue));
    }

    /// Goes on in another group, or leaves if this rank wants to and holds nothing.
    fn regroup(&mut self, report: &mut StepReport) -> Result<(), LiveError> {
        let holds = self.layers.iter().any(|layer| !layer.held().is_empty());
        if self.leaving && !holds {
            self.membership = None;
            self.group = None;
            self.leader = None;
            self.state = RebalanceState::Idle;
            report.events.push(Event::Left);
            return Ok(());
        }
        self.enter()?;
        report.events.push(self.regrouped());
        Ok(())
    }

    fn regrouped(&self) -> Event {
        Event::Regrouped {
            members: self.members().to_vec(),
            absent: self.layers.iter().map(|layer| layer.absent.len()).sum(),
        }
    }

    /// After an error that has ended the group: goes on with all that are left. What they hold is
    /// served at once; what nobody holds is read from the checkpoint while tokens flow.
    ///
    /// # Errors
    ///
    /// If there can be no other group.
    pub fn recover(&mut self) -> Result<Event, LiveError> {
        self.enter()?;
        Ok(self.regrouped())
    }

    /// Enters the next group. A member that is lost meanwhile ends it, and the next one is formed.
    fn enter(&mut self) -> Result<(), LiveError> {
        self.migration = None;
        let abandoned = self.leader.take().map_or(0, |leader| leader.abandoned);
        self.abandoned_planners += abandoned;
        self.group = None;
        self.state = RebalanceState::Idle;
        let mut lost = 0;
        let formed = loop {
            let membership = self
                .membership
                .as_ref()
                .ok_or(LiveError::NoGroup("it has left"))?;
            let group = membership.next_group()?;
            let (comm, size) = (group.comm.clone(), group.members.len());
            let result = form(
                group,
                &self.config,
                &mut self.layers,
                &self.initial,
                self.source.as_ref(),
                self.step,
            );
            match result {
                Ok(formed) => break formed,
                Err(LiveError::Group(_)) if lost < size => lost += 1,
                Err(error) => {
                    comm.abort(&chain(&error));
                    return Err(error);
                }
            }
        };
        self.check_staging(&formed.group)?;
        self.step = formed.step;
        let experts = self
            .layers
            .first()
            .map_or(0, |layer| layer.parts.num_experts());
        let shape = [self.layers.len(), experts, formed.group.comm.size()];
        self.watcher = self
            .config
            .watch
            .then(|| LoadWatcher::new(shape[0], shape[1], shape[2]));
        if formed.group.rank().index() == 0 {
            let mut leader = Leader::new(&self.config, shape, !formed.first, self.step);
            leader.abandoned = std::mem::take(&mut self.abandoned_planners);
            self.leader = Some(leader);
        }
        self.leaving_ranks = vec![false; shape[2]];
        self.group = Some(formed.group);
        if self.layers.iter().any(|layer| !layer.absent.is_empty()) {
            self.restore();
        }
        Ok(())
    }

    fn check_staging(&self, group: &InGroup) -> Result<(), LiveError> {
        let budget = self.config.staging_bytes;
        let large = group.expert_bytes.iter().position(|&bytes| bytes > budget);
        match large {
            Some(layer) => Err(LiveError::Staging {
                budget,
                needed: group.expert_bytes[layer],
                layer,
            }),
            None => Ok(()),
        }
    }
}
