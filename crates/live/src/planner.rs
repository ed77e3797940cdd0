//! A plan, made beside the forward passes from a snapshot.

use std::sync::Arc;

use moekit_placement::{
    LoadTrace, MigrationBudget, ModelPlacement, Placement, PlacementChange, PlacementError,
    PlacementRequest, PlacementStrategy, Topology, balance::rank_loads, placement_in_group,
};
use moekit_routing::Rank;

use crate::LiveConfig;

/// What a planner is given: a copy of all that it looks at.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    pub(crate) strategy: Arc<dyn PlacementStrategy>,
    pub(crate) redundant_experts: usize,
    pub(crate) expert_groups: Option<usize>,
    pub(crate) nodes: usize,
    /// The placement in force of each layer.
    pub(crate) current: Vec<Placement>,
    /// Bytes of the largest expert of each layer.
    pub(crate) expert_bytes: Vec<u64>,
    pub(crate) load: Option<LoadTrace>,
    /// Steps that the load stands for.
    pub(crate) load_steps: f64,
    /// The ranks that shall hold experts; the others leave.
    pub(crate) active: Vec<Rank>,
    /// Whether the ranks have changed, so that the plan is taken whatever it costs.
    pub(crate) mandatory: bool,
}

/// What a planner answers.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    /// The next placement of each layer, over all ranks of the group.
    pub(crate) target: Vec<Placement>,
    /// Layers, those first whose busiest rank is spared most per byte that moves.
    pub(crate) order: Vec<usize>,
    /// Routed tokens that the busiest ranks are spared per step, summed over layers.
    pub(crate) gain: f64,
    /// Bytes that move.
    pub(crate) bytes: u64,
    pub(crate) mandatory: bool,
}

/// A topology of evenly spread ranks, of one node where nodes do not divide them.
pub(crate) fn topology(num_ranks: usize, nodes: usize) -> Result<Topology, PlacementError> {
    let topology = Topology::new(num_ranks)?;
    if nodes > 1 && num_ranks.is_multiple_of(nodes) {
        return Ok(topology.with_nodes(nodes)?);
    }
    Ok(topology)
}

impl Snapshot {
    pub(crate) fn new(config: &LiveConfig) -> Self {
        Self {
            strategy: config.strategy.clone(),
            redundant_experts: config.redundant_experts,
            expert_groups: config.expert_groups,
            nodes: config.nodes,
            current: Vec::new(),
            expert_bytes: Vec::new(),
            load: None,
            load_steps: 1.0,
            active: Vec::new(),
            mandatory: false,
        }
    }

    /// Asks the strategy for the active ranks, and widens the answer to the group.
    pub(crate) fn plan(&self) -> Result<Plan, PlacementError> {
        let topology = topology(self.active.len(), self.nodes)?;
        let current = self.current_of_active();
        let experts = self
            .current
            .first()
            .map_or(0, Placement::num_logical_experts);
        let mut request = PlacementRequest::new(self.current.len(), experts, &topology)?
            .with_slots_per_rank(self.slots(experts))?;
        if let Some(groups) = self.expert_groups {
            request = request.with_expert_groups(groups)?;
        }
        let total = self.load.as_ref().map(LoadTrace::total);
        if let (Some(trace), Some(total)) = (&self.load, &total) {
            request = request.with_load(total)?.with_trace(trace)?;
        }
        if let Some(current) = &current {
            request = request.with_current(current, MigrationBudget::Unlimited)?;
        }
        let placement = self.strategy.plan(&request)?;
        let num_ranks = self.current.first().map_or(1, Placement::num_ranks);
        let target: Vec<Placement> = placement
            .into_layers()
            .iter()
            .map(|layer| placement_in_group(layer, &self.active, num_ranks))
            .collect::<Result<_, _>>()?;
        let (mut gain, mut bytes) = (0.0, 0_u64);
        let mut worth = Vec::with_capacity(target.len());
        for (l, (old, new)) in self.current.iter().zip(&target).enumerate() {
            let slots = PlacementChange::between(old, new).slots_received() as u64;
            let moved = slots * self.expert_bytes.get(l).copied().unwrap_or(0);
            let spared = match total.as_ref().and_then(|load| load.layer(l)) {
                Some(load) => busiest(old, load)? - busiest(new, load)?,
                None => 0.0,
            };
            worth.push(spared / moved.max(1) as f64);
            (gain, bytes) = (gain + spared, bytes + moved);
        }
        let mut order: Vec<usize> = (0..target.len()).collect();
        order.sort_by(|&a, &b| worth[b].total_cmp(&worth[a]));
        Ok(Plan {
            target,
            order,
            gain: gain / self.load_steps,
            bytes,
            mandatory: self.mandatory,
        })
    }

    /// As many slots on every rank, at least those that are asked for in all.
    fn slots(&self, experts: usize) -> Vec<usize> {
        let ranks = self.active.len().max(1);
        vec![(experts + self.redundant_experts).div_ceil(ranks); ranks]
    }

    /// The placement in force on the active ranks, if they hold every expert.
    fn current_of_active(&self) -> Option<ModelPlacement> {
        let layers = self.current.iter().map(|layer| {
            let ranks: Vec<Vec<usize>> = self
                .active
                .iter()
                .map(|&rank| {
                    let held = layer.experts_of(rank).unwrap_or_default();
                    held.iter().map(|expert| expert.index()).collect()
                })
                .collect();
            Placement::from_ranks(layer.num_logical_experts(), &ranks).ok()
        });
        ModelPlacement::new(layers.collect::<Option<_>>()?).ok()
    }
}

fn busiest(placement: &Placement, load: &[f64]) -> Result<f64, PlacementError> {
    Ok(rank_loads(placement, load)?.into_iter().fold(0.0, f64::max))
}
