//! What a rank does between two forward passes.

use std::time::Instant;

use moekit_parallel::Buffer;
use moekit_placement::Placement;
use moekit_routing::Rank;
use xxhash_rust::xxh3::xxh3_64;

use super::LiveRank;
use crate::form::InGroup;
use crate::frame::{Command, Control, Frame, Piece, Report, encode_control, parse, put};
use crate::leader::View;
use crate::migration::{Here, Migration};
use crate::state::{Event, RebalanceState, StepReport};
use crate::{LiveError, telemetry};

impl LiveRank {
    pub(super) fn try_end_step(&mut self) -> Result<StepReport, LiveError> {
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
        let (report, pieces) = self.advance()?;
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
            let own = pieces.iter().filter(|(rank, _)| rank.index() == to);
            put(&mut out, &bytes, load, own.map(|(_, piece)| piece));
            lengths.push(out.len() - start);
        }
        Ok((control, out, lengths))
    }

    /// The decision of rank 0.
    fn command(&mut self) -> Result<Option<Command>, LiveError> {
        let Some(mut leader) = self.leader.take() else {
            return Ok(None);
        };
        let command = leader.decide(&self.view()?);
        self.leader = Some(leader);
        Ok(command)
    }

    /// Rank 0 begins to plan, if it is time to.
    pub(super) fn plan(&mut self) -> Result<(), LiveError> {
        if let Some(mut leader) = self.leader.take() {
            leader.plan(&self.view()?);
            self.leader = Some(leader);
        }
        Ok(())
    }

    fn view(&self) -> Result<View<'_>, LiveError> {
        Ok(View {
            config: &self.config,
            step: self.step,
            placements: self.placements(),
            expert_bytes: &self.group()?.expert_bytes,
            leaving: &self.leaving_ranks,
            waiting: self.membership.as_ref().map_or(0, |m| m.num_waiting()),
            any_absent: self.layers.iter().any(|layer| !layer.absent.is_empty()),
            moving: self.migration.is_some(),
            retry: match self.state {
                RebalanceState::Failed { retry, .. } => Some(retry),
                _ => None,
            },
        })
    }

    fn advance(&mut self) -> Result<(Report, Vec<(Rank, Piece)>), LiveError> {
        let Some(mut migration) = self.migration.take() else {
            return Ok((Report::Idle, Vec::new()));
        };
        let said = migration.report(&self.here()?);
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
            reads: &self.reads,
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
            pieces.push(frame.pieces);
        }
        let due = own.step.is_multiple_of(self.config.load_interval);
        if let Some(leader) = self.leader.as_mut().filter(|_| due) {
            report.balance = leader.deliver(&loads, self.step, &self.config);
        }
        self.migrate(&controls, pieces, report)?;
        let command = controls.into_iter().next().and_then(|first| first.command);
        if let Some(command) = command {
            self.obey(command, report)?;
        }
        self.progress()?;
        self.plan()
    }

    /// Begins what can go on beside the next forward passes.
    fn progress(&mut self) -> Result<(), LiveError> {
        if let Some(mut migration) = self.migration.take() {
            migration.progress(&self.here()?);
            self.migration = Some(migration);
        }
        Ok(())
    }

    /// Takes in pieces, and commits or gives up.
    fn migrate(
        &mut self,
        controls: &[Control],
        pieces: Vec<Result<Vec<Piece>, String>>,
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
            for (from, pieces) in pieces.into_iter().enumerate() {
                migration.receive(Rank::new(from), pieces, &self.config);
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
        for commit in migration.agree(controls) {
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
            Command::Adopt {
                layers,
                order,
                gain,
            } => self.adopt(&layers, &order, gain, report),
            Command::Restore => self.restore(),
            Command::Regroup => self.regroup(report)?,
        }
        Ok(())
    }

    fn adopt(&mut self, next: &[Placement], order: &[usize], gain: f64, report: &mut StepReport) {
        let current = self.placements();
        let fits = |(old, new): (&Placement, &Placement)| {
            old.num_ranks() == new.num_ranks()
                && old.num_logical_experts() == new.num_logical_experts()
        };
        if next.len() != current.len() || !current.iter().zip(next).all(fits) {
            if let Some(leader) = &mut self.leader {
                leader.migration_ended(true);
            }
            let reason = "the plan has other layers, experts or ranks than the group".to_owned();
            return self.fail(reason, report);
        }
        let changed = |&layer: &usize| {
            let next = next.get(layer)?;
            (current[layer] != *next).then(|| (layer, next.clone()))
        };
        let changes: Vec<_> = order.iter().filter_map(changed).collect();
        let layers = changes.len();
        tracing::info!(step = self.step, layers, gain, "plan adopted");
        report.events.push(Event::PlanAdopted { layers, gain });
        self.keep(Migration::new(changes));
    }

    /// Begins to read what nobody holds into the slots that are reserved for it.
    pub(super) fn restore(&mut self) {
        let placements = self.placements();
        let layers = self.layers.iter().zip(placements).enumerate();
        let absent = layers.filter(|(_, (layer, _))| !layer.absent.is_empty());
        let queue = absent.map(|(l, (_, placement))| (l, placement)).collect();
        self.keep(Migration::new(queue));
    }
}
