//! How a rank gets from group to group.

use super::LiveRank;
use crate::error::chain;
use crate::form::{InGroup, form};
use crate::layer::LiveLayer;
use crate::leader::Leader;
use crate::load::LoadWatcher;
use crate::state::{Event, RebalanceState, StepReport};
use crate::{LiveError, telemetry};

impl LiveRank {
    /// Goes on in another group, or leaves if this rank wants to and holds nothing.
    pub(super) fn regroup(&mut self, report: &mut StepReport) -> Result<(), LiveError> {
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

    pub(super) fn regrouped(&self) -> Event {
        Event::Regrouped {
            members: self.members().to_vec(),
            absent: self.layers.iter().map(|layer| layer.absent.len()).sum(),
        }
    }

    /// Enters the next group. A member that is lost meanwhile ends it, and the next one is formed.
    pub(super) fn enter(&mut self) -> Result<(), LiveError> {
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
                self.entered.then_some(self.step),
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
        self.entered = true;
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
        let generations = self.layers.iter().map(LiveLayer::generation);
        telemetry::tables(formed.group.rank(), generations);
        self.group = Some(formed.group);
        if self.layers.iter().any(|layer| !layer.absent.is_empty()) {
            self.restore();
        }
        self.plan()
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
