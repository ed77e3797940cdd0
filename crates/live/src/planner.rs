//! A plan, made beside the forward passes from a snapshot.

use std::sync::Arc;

use moekit_placement::{
    LoadTrace, MigrationBudget, ModelPlacement, Placement, PlacementChange, PlacementError,
    PlacementRequest, PlacementStrategy, Topology,
    balance::{LayerBalance, rank_loads},
    placement_in_group,
};
use moekit_routing::Rank;

use crate::LiveConfig;
use crate::load::PastLoad;

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
    pub(crate) load: PastLoad,
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

/// Ranks spread over nodes as evenly as possible, one on each node where there are fewer ranks.
pub(crate) fn topology(num_ranks: usize, nodes: usize) -> Result<Topology, PlacementError> {
    Ok(Topology::new(num_ranks)?.with_nodes(nodes.min(num_ranks))?)
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
            load: PastLoad::default(),
            load_steps: 1.0,
            active: Vec::new(),
            mandatory: false,
        }
    }

    /// Asks the strategy for the active ranks, and widens the answer to the group.
    pub(crate) fn plan(&self) -> Result<Plan, PlacementError> {
        let topology = topology(self.active.len(), self.nodes)?;
        let current = self.current_on_active()?;
        let experts = self
            .current
            .first()
            .map_or(0, Placement::num_logical_experts);
        let mut request = PlacementRequest::new(self.current.len(), experts, &topology)?
            .with_slots_per_rank(self.slots(experts))?;
        if let Some(groups) = self.expert_groups {
            request = request.with_expert_groups(groups)?;
        }
        let load = self.load.trace()?;
        let total = load.as_ref().map(LoadTrace::total);
        if let (Some(trace), Some(total)) = (&load, &total) {
            request = request.with_load(total)?.with_trace(trace)?;
        }
        request = request.with_current(&current, MigrationBudget::Unlimited)?;
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
                Some(load) => self.busiest(old, load)? - self.busiest(new, load)?,
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

    fn busiest(&self, placement: &Placement, load: &[f64]) -> Result<f64, PlacementError> {
        let loads = rank_loads(placement, load)?;
        Ok(LayerBalance::at_speeds(&loads, self.strategy.speeds()).max_load)
    }

    /// As many slots on every rank, at least those that are asked for in all.
    fn slots(&self, experts: usize) -> Vec<usize> {
        let ranks = self.active.len().max(1);
        vec![
            experts
                .saturating_add(self.redundant_experts)
                .div_ceil(ranks);
            ranks
        ]
    }

    /// The placement in force with the active ranks as the strategy numbers them; those that leave
    /// come behind, beyond the ranks of the request.
    fn current_on_active(&self) -> Result<ModelPlacement, PlacementError> {
        let layers = self.current.iter().map(|layer| {
            let leaving = (0..layer.num_ranks()).map(Rank::new);
            let leaving = leaving.filter(|rank| !self.active.contains(rank));
            let held = |rank| {
                let slots = layer.experts_of(rank).unwrap_or_default().iter();
                slots.map(|expert| expert.index()).collect()
            };
            let ranks: Vec<Vec<usize>> = self
                .active
                .iter()
                .copied()
                .chain(leaving)
                .map(held)
                .collect();
            Ok(Placement::from_ranks(layer.num_logical_experts(), &ranks)?)
        });
        ModelPlacement::new(layers.collect::<Result<_, PlacementError>>()?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use moekit_placement::typetag;

    use super::*;

    /// Notes the placement in force that it is asked with.
    #[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
    struct Noting {
        #[serde(skip)]
        current: Arc<Mutex<Vec<Placement>>>,
    }

    #[typetag::serde(name = "live-planner-test-noting")]
    impl PlacementStrategy for Noting {
        fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
            let current = request.current().map(|current| current.layers().to_vec());
            *self.current.lock().unwrap() = current.unwrap_or_default();
            let (experts, slots) = (request.num_logical_experts(), request.num_slots());
            let slots = (0..slots).map(|slot| slot % experts).collect();
            let layer = Placement::new(experts, slots, request.rank_offsets())?;
            ModelPlacement::new(vec![layer])
        }
    }

    #[test]
    fn a_plan_without_some_ranks_knows_what_the_others_hold() {
        let strategy = Arc::new(Noting::default());
        let current = strategy.current.clone();
        let snapshot = Snapshot {
            current: vec![Placement::from_ranks(6, &[[0, 1], [2, 3], [4, 5]]).unwrap()],
            active: vec![Rank::new(0), Rank::new(2)],
            ..Snapshot::new(&LiveConfig::new(strategy))
        };
        let plan = snapshot.plan().unwrap();
        let expected = Placement::from_ranks(6, &[[0, 1], [4, 5], [2, 3]]).unwrap();
        assert_eq!(*current.lock().unwrap(), [expected]);
        let slots = |rank| plan.target[0].experts_of(Rank::new(rank)).unwrap().len();
        assert_eq!([slots(0), slots(1), slots(2)], [3, 0, 3]);
    }

    #[test]
    fn nodes_are_uneven_where_they_do_not_divide_ranks() {
        let ranks = |num_ranks, nodes| {
            let topology = topology(num_ranks, nodes).unwrap();
            let ranks = (0..topology.num_nodes()).map(|n| topology.ranks_of(n).unwrap().len());
            ranks.collect::<Vec<_>>()
        };
        assert_eq!(ranks(3, 2), [2, 1]);
        assert_eq!(ranks(4, 2), [2, 2]);
        assert_eq!(ranks(1, 2), [1]);
    }
}
