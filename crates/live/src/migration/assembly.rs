//! Stages under way on one rank: what has arrived for each, and the layer that comes of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use moekit_fused_moe::{FusedMoe, PreparedExpert, TokenDispatcher};
use moekit_placement::Placement;
use moekit_routing::{LogicalExpert, ReplicaSelector, RoutingTable, Topology};

use super::schedule::Planned;
use super::{Commit, Here, finished};
use crate::ExpertSource;
use crate::error::chain;
use crate::expert::{ExpertId, prepared};
use crate::layer::{LayerParts, NextLayer, build};
use crate::task::{MAX_ABANDONED, Task};

/// An expert for a stage.
type Arrived = (usize, LogicalExpert, Arc<PreparedExpert>);
/// The layer that comes of a stage.
type Built = (usize, FusedMoe);

/// The stages under way.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    stages: BTreeMap<usize, Open>,
    /// Experts that this rank is to read from the checkpoint, each for a stage.
    to_read: Vec<(usize, ExpertId)>,
    reading: Option<Task<Result<Vec<Arrived>, String>>>,
    building: Option<Task<Result<Vec<Built>, String>>>,
}

/// A stage under way.
#[derive(Debug)]
struct Open {
    layer: usize,
    placement: Placement,
    /// Experts that no rank holds after it.
    absent: BTreeSet<LogicalExpert>,
    /// Experts that other ranks send.
    to_come: BTreeSet<LogicalExpert>,
    /// Experts that are read.
    to_read: usize,
    arrived: BTreeMap<LogicalExpert, Arc<PreparedExpert>>,
    is_building: bool,
    built: Option<Arc<FusedMoe>>,
}

impl Assembly {
    /// Begins a stage.
    pub(super) fn open(&mut self, index: usize, planned: &Planned, here: &Here<'_>) {
        let plan = &planned.stage.plan;
        let to_come = plan.transfers().filter(|t| t.to == here.rank);
        let reads = plan.reads.iter().filter(|read| read.rank == here.rank);
        let layer = planned.layer;
        let reads = reads.map(|read| {
            let expert = read.expert;
            (index, ExpertId { layer, expert })
        });
        let before = self.to_read.len();
        self.to_read.extend(reads);
        let open = Open {
            layer,
            placement: plan.placement.clone(),
            absent: planned.stage.absent.clone(),
            to_come: to_come.map(|t| t.expert).collect(),
            to_read: self.to_read.len() - before,
            arrived: BTreeMap::new(),
            is_building: false,
            built: None,
        };
        self.stages.insert(index, open);
    }

    /// Whether an expert is to come from another rank.
    pub(super) fn expects(&self, id: ExpertId) -> bool {
        let mut stages = self.stages.values();
        stages.any(|open| open.layer == id.layer && open.to_come.contains(&id.expert))
    }

    /// Takes in an expert that another rank sent.
    pub(super) fn arrived(&mut self, id: ExpertId, weights: Arc<PreparedExpert>) {
        let mut stages = self.stages.values_mut();
        let of = |open: &&mut Open| open.layer == id.layer && open.to_come.contains(&id.expert);
        if let Some(open) = stages.find(of) {
            open.to_come.remove(&id.expert);
            open.arrived.insert(id.expert, weights);
        }
    }

    /// Experts that have not come, each with its stage.
    pub(super) fn missing(&self) -> impl Iterator<Item = (usize, ExpertId)> {
        self.stages.iter().flat_map(|(&index, open)| {
            let layer = open.layer;
            let ids = open.to_come.iter();
            ids.map(move |&expert| (index, ExpertId { layer, expert }))
        })
    }

    /// Reads, and makes the layers for which all is there.
    pub(super) fn progress(&mut self, here: &Here<'_>) -> Result<(), String> {
        self.read(here)?;
        self.build(here)
    }

    fn read(&mut self, here: &Here<'_>) -> Result<(), String> {
        loop {
            if let Some(task) = &self.reading {
                let Some(experts) = finished(task, here)? else {
                    return Ok(());
                };
                self.reading = None;
                for (index, expert, weights) in experts? {
                    if let Some(open) = self.stages.get_mut(&index) {
                        open.to_read -= 1;
                        open.arrived.insert(expert, weights);
                    }
                }
            }
            if self.to_read.is_empty() {
                return Ok(());
            }
            let left_behind = Arc::strong_count(here.reads) - 1;
            if left_behind >= MAX_ABANDONED {
                return Err(format!(
                    "{left_behind} reads of experts have not returned, no other is started"
                ));
            }
            let (experts, source) = (std::mem::take(&mut self.to_read), here.source.clone());
            let running = here.reads.clone();
            let read = move || {
                let _running = running;
                read(&experts, source.as_ref())
            };
            self.reading = Some(Task::spawn("reading experts", here.step, read)?);
        }
    }

    fn build(&mut self, here: &Here<'_>) -> Result<(), String> {
        loop {
            if let Some(task) = &self.building {
                let Some(built) = finished(task, here)? else {
                    return Ok(());
                };
                self.building = None;
                for (index, layer) in built? {
                    if let Some(open) = self.stages.get_mut(&index) {
                        open.built = Some(Arc::new(layer));
                    }
                }
            }
            let mut blueprints = Vec::new();
            for (&index, open) in &mut self.stages {
                if !open.is_building && open.to_come.is_empty() && open.to_read == 0 {
                    open.is_building = true;
                    blueprints.push((index, Blueprint::new(open, here)));
                }
            }
            if blueprints.is_empty() {
                return Ok(());
            }
            let make = move || {
                let one = |(index, blueprint): (usize, Blueprint)| Ok((index, blueprint.build()?));
                blueprints.into_iter().map(one).collect()
            };
            self.building = Some(Task::spawn("preparing layers", here.step, make)?);
        }
    }

    /// Stages of which the next layer is made.
    pub(super) fn ready(&self) -> Vec<usize> {
        let stages = self.stages.iter();
        let ready = stages.filter(|(_, open)| open.built.is_some());
        ready.map(|(&index, _)| index).collect()
    }

    /// Ends a stage that is ready.
    pub(super) fn close(&mut self, index: usize) -> Option<Commit> {
        let open = self.stages.remove(&index)?;
        Some(Commit {
            layer: open.layer,
            next: open.built?,
            absent: open.absent,
            received: open.arrived.len(),
        })
    }
}

/// Reads experts from the checkpoint.
fn read(experts: &[(usize, ExpertId)], source: &dyn ExpertSource) -> Result<Vec<Arrived>, String> {
    let one = |&(index, id): &(usize, ExpertId)| match source.read(id.layer, id.expert) {
        Ok(weights) => {
            let weights = prepared(&weights).map_err(|error| chain(&error))?;
            Ok((index, id.expert, weights))
        }
        Err(error) => Err(format!("{id} cannot be read: {}", chain(&*error))),
    };
    experts.iter().map(one).collect()
}

/// All that the next layer is made of.
struct Blueprint {
    parts: Arc<LayerParts>,
    previous: Option<Arc<FusedMoe>>,
    placement: Placement,
    topology: Topology,
    generation: u64,
    weights: BTreeMap<LogicalExpert, Arc<PreparedExpert>>,
    absent: BTreeSet<LogicalExpert>,
    dispatcher: Arc<dyn TokenDispatcher>,
    selector: ReplicaSelector,
}

impl Blueprint {
    fn new(open: &Open, here: &Here<'_>) -> Self {
        let live = &here.layers[open.layer];
        let mut weights: BTreeMap<_, _> = live.held().into_iter().collect();
        weights.extend(open.arrived.iter().map(|(e, w)| (*e, w.clone())));
        Self {
            parts: live.parts.clone(),
            previous: live.current(),
            placement: open.placement.clone(),
            topology: here.topology.clone(),
            generation: live.generation() + 1,
            weights,
            absent: open.absent.clone(),
            dispatcher: here.dispatcher.clone(),
            selector: here.config.selector.clone(),
        }
    }

    fn build(self) -> Result<FusedMoe, String> {
        let shared = self.parts.num_fused_shared();
        let table = RoutingTable::new(self.placement, self.topology, shared, self.generation);
        let next = NextLayer {
            table: Arc::new(table.map_err(|error| error.to_string())?),
            weights: self.weights,
            absent: self.absent,
            dispatcher: self.dispatcher,
            selector: self.selector,
        };
        build(&self.parts, self.previous.as_deref(), &next).map_err(|error| chain(&error))
    }
}
