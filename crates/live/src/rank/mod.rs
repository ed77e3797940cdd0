mod groups;
mod step;

use std::sync::Arc;

use burn::tensor::Tensor;
use moekit_fused_moe::{ForwardOptions, FusedMoe};
use moekit_placement::{ModelPlacement, Placement};
use moekit_routing::{ExpertRouting, LogicalExpert, Rank};

use crate::error::chain;
use crate::form::InGroup;
use crate::group::Membership;
use crate::layer::{LayerParts, LiveLayer, LiveOutput, SharedLayer, check_parts, forward};
use crate::leader::Leader;
use crate::load::LoadWatcher;
use crate::migration::Migration;
use crate::state::{Event, RebalanceState, StepReport};
use crate::{ExpertSource, LiveConfig, LiveError};

/// How often the same members try the same step before they give up.
const MAX_ATTEMPTS: u32 = 3;

/// One rank of a live group: its layers, and its part in keeping them balanced.
///
/// All ranks do the same: forward passes of the layers in the same order, then
/// [`end_step`](Self::end_step), again and again, with tokens or without. After an error that
/// [ends the group](LiveError::ends_group), those that are left [`recover`](Self::recover) and go on
/// with the step that [`step`](Self::step) names: the first of which the forward passes have not all
/// returned on all of them. A rank on which they have may get the outputs of that step twice, never
/// not at all.
#[derive(Debug)]
pub struct LiveRank {
    membership: Option<Box<dyn Membership>>,
    config: LiveConfig,
    source: Arc<dyn ExpertSource>,
    layers: Vec<LiveLayer>,
    initial: ModelPlacement,
    group: Option<InGroup>,
    step: u64,
    /// Whether it has been in a group.
    entered: bool,
    /// The step and the members with which the rank went on after the last error, and how often in
    /// a row.
    resumed: (u64, Vec<u64>),
    attempts: u32,
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
    /// Held by every read of experts that runs, those that were given up included.
    reads: Arc<()>,
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
            entered: false,
            resumed: (0, Vec::new()),
            attempts: 0,
            watching: true,
            leaving: false,
            state: RebalanceState::Idle,
            watcher: None,
            migration: None,
            leader: None,
            abandoned_planners: 0,
            leaving_ranks: Vec::new(),
            reads: Arc::default(),
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
        let output = forward(layer, &current, hidden, options).inspect_err(|error| {
            // The others are to hear why.
            if let Some(group) = &self.group {
                group.comm.abort(&chain(error));
            }
        })?;
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

    /// Asks to leave, or to stay after all. The group moves the experts of a rank that is to leave
    /// elsewhere and lets it go, which [`Event::Left`] tells. Until then it goes on as before, and
    /// may change its mind.
    pub fn set_leaving(&mut self, leaving: bool) {
        self.leaving = leaving;
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

    /// After an error that has ended the group: goes on with all that are left. What they hold is
    /// served at once; what nobody holds is read from the checkpoint while tokens flow.
    ///
    /// # Errors
    ///
    /// If there can be no other group; [`LiveError::NoProgress`] if the same members have failed at
    /// the same step again and again.
    pub fn recover(&mut self) -> Result<Event, LiveError> {
        self.enter()?;
        let resumed = (self.step, self.members().to_vec());
        let again = std::mem::replace(&mut self.resumed, resumed) == self.resumed;
        self.attempts = if again { self.attempts + 1 } else { 1 };
        if self.attempts > MAX_ATTEMPTS {
            return Err(LiveError::NoProgress {
                step: self.step,
                attempts: self.attempts,
            });
        }
        Ok(self.regrouped())
    }
}
