use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use moekit_routing::{Placement, RoutingTable, RoutingTableProvider, Topology};

use crate::{
    ExpertLoad, MigrationBudget, ModelPlacement, PlacementChange, PlacementError, PlacementRequest,
    PlacementStrategy,
};

/// What an [`ExpertMapManager`] is built from.
///
/// ```
/// # use std::sync::Arc;
/// # use moekit_placement::*;
/// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// # struct Linear {}
/// # #[typetag::serde(name = "doc-linear")]
/// # impl PlacementStrategy for Linear {
/// #     fn place(&self, r: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
/// #         let slots = (0..r.num_slots()).map(|s| s % r.num_logical_experts()).collect();
/// #         ModelPlacement::new(vec![Placement::new(r.num_logical_experts(), slots, r.rank_offsets())?])
/// #     }
/// # }
/// use moekit_routing::RoutingTableProvider;
///
/// let manager = ExpertMapManagerConfig::new(Arc::new(Linear {}), Topology::new(1)?, 8)
///     .with_shared_experts(1)
///     .init()?;
/// assert_eq!(manager.snapshot().num_ranks(), 1);
///
/// let change = manager.update(TopologyUpdate::new(Topology::new(4)?), None)?;
/// assert_eq!(change.slots_received(), 6, "ranks 1, 2 and 3 receive two experts each");
/// assert_eq!(manager.snapshot().generation(), 1);
/// # Ok::<(), PlacementError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ExpertMapManagerConfig {
    strategy: Arc<dyn PlacementStrategy>,
    topology: Topology,
    num_logical_experts: usize,
    num_redundant_experts: usize,
    num_shared_experts: usize,
    num_expert_groups: Option<usize>,
}

impl ExpertMapManagerConfig {
    /// One slot per expert, no shared experts.
    pub fn new(
        strategy: Arc<dyn PlacementStrategy>,
        topology: Topology,
        num_logical_experts: usize,
    ) -> Self {
        Self {
            strategy,
            topology,
            num_logical_experts,
            num_redundant_experts: 0,
            num_shared_experts: 0,
            num_expert_groups: None,
        }
    }

    /// Slots beyond one per expert, over all ranks.
    #[must_use]
    pub fn with_redundant_experts(mut self, redundant: usize) -> Self {
        self.num_redundant_experts = redundant;
        self
    }

    /// Shared experts fused as extra local slots of every rank.
    #[must_use]
    pub fn with_shared_experts(mut self, shared: usize) -> Self {
        self.num_shared_experts = shared;
        self
    }

    /// Expert groups of the gate.
    #[must_use]
    pub fn with_expert_groups(mut self, groups: usize) -> Self {
        self.num_expert_groups = Some(groups);
        self
    }

    /// Places with the strategy and builds the first table, generation 0.
    ///
    /// # Errors
    ///
    /// Those of the strategy.
    pub fn init(self) -> Result<ExpertMapManager, PlacementError> {
        let placement = self.place(None, None)?;
        self.init_with_placement(placement)
    }

    /// Starts from a placement that is known already; the strategy serves later updates.
    ///
    /// # Errors
    ///
    /// If the placement has other experts or ranks than configured.
    pub fn init_with_placement(
        self,
        placement: Placement,
    ) -> Result<ExpertMapManager, PlacementError> {
        let table = Arc::new(self.table(placement, 0)?);
        Ok(ExpertMapManager {
            table: ArcSwap::new(table),
            config: Mutex::new(self),
        })
    }

    fn place(
        &self,
        load: Option<&ExpertLoad>,
        current: Option<&ModelPlacement>,
    ) -> Result<Placement, PlacementError> {
        let mut request = PlacementRequest::new(1, self.num_logical_experts, &self.topology)?;
        // Without any, a strategy that decides the slots of each rank may do so.
        if self.num_redundant_experts > 0 {
            request = request.with_redundant_experts(self.num_redundant_experts)?;
        }
        if let Some(groups) = self.num_expert_groups {
            request = request.with_expert_groups(groups)?;
        }
        if let Some(load) = load {
            request = request.with_load(load)?;
        }
        if let Some(current) =
            current.filter(|c| c.num_logical_experts() == self.num_logical_experts)
        {
            request = request.with_current(current, MigrationBudget::Unlimited)?;
        }
        let plan = self.strategy.plan(&request)?;
        // `plan` checks that there is exactly the one layer that was asked for.
        plan.into_layers().pop().ok_or(PlacementError::NoLayers)
    }

    fn table(&self, placement: Placement, generation: u64) -> Result<RoutingTable, PlacementError> {
        if placement.num_logical_experts() != self.num_logical_experts {
            return Err(PlacementError::Shape {
                what: "number of logical experts in the placement".to_owned(),
                got: placement.num_logical_experts(),
                expected: self.num_logical_experts,
            });
        }
        let topology = self.topology.clone();
        Ok(RoutingTable::new(
            placement,
            topology,
            self.num_shared_experts,
            generation,
        )?)
    }
}

/// What changes about a layer's EP group; everything that is not named stays.
#[derive(Clone, Debug)]
pub struct TopologyUpdate {
    topology: Topology,
    num_logical_experts: Option<usize>,
    num_redundant_experts: Option<usize>,
    num_expert_groups: Option<Option<usize>>,
}

impl TopologyUpdate {
    /// Other ranks or nodes.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            num_logical_experts: None,
            num_redundant_experts: None,
            num_expert_groups: None,
        }
    }

    /// Another number of logical experts.
    #[must_use]
    pub fn with_logical_experts(mut self, experts: usize) -> Self {
        self.num_logical_experts = Some(experts);
        self
    }

    /// Another number of redundant experts.
    #[must_use]
    pub fn with_redundant_experts(mut self, redundant: usize) -> Self {
        self.num_redundant_experts = Some(redundant);
        self
    }

    /// Other expert groups, or none.
    #[must_use]
    pub fn with_expert_groups(mut self, groups: Option<usize>) -> Self {
        self.num_expert_groups = Some(groups);
        self
    }
}

/// Holds the routing table in force of one layer and swaps it in one step.
///
/// Readers take a [`snapshot`](RoutingTableProvider::snapshot) and see one generation, never a
/// mixture; they never wait. Writers are serialized; one that fails leaves the old table in force.
#[derive(Debug)]
pub struct ExpertMapManager {
    table: ArcSwap<RoutingTable>,
    /// The requested configuration. Its lock serializes writers.
    config: Mutex<ExpertMapManagerConfig>,
}

impl ExpertMapManager {
    fn config(&self) -> MutexGuard<'_, ExpertMapManagerConfig> {
        // A writer changes the configuration only as its last step, so a panic leaves it whole.
        self.config.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Places anew for another topology or expert count, with the strategy that was requested.
    ///
    /// # Arguments
    ///
    /// - `load` - tokens per logical expert, `[E]`, for strategies that use it.
    ///
    /// # Returns
    ///
    /// What each rank gains and loses.
    ///
    /// # Errors
    ///
    /// Those of the strategy; the old table stays in force.
    pub fn update(
        &self,
        update: TopologyUpdate,
        load: Option<&[f64]>,
    ) -> Result<PlacementChange, PlacementError> {
        let mut config = self.config();
        let mut next = config.clone();
        next.topology = update.topology;
        next.num_logical_experts = update
            .num_logical_experts
            .unwrap_or(next.num_logical_experts);
        next.num_redundant_experts = update
            .num_redundant_experts
            .unwrap_or(next.num_redundant_experts);
        next.num_expert_groups = update.num_expert_groups.unwrap_or(next.num_expert_groups);

        let current = ModelPlacement::new(vec![self.snapshot().placement().clone()])?;
        let load = load.map(|l| ExpertLoad::from_rows(&[l])).transpose()?;
        let placement = next.place(load.as_ref(), Some(&current))?;
        let change = self.swap(&next, placement)?;
        *config = next;
        Ok(change)
    }

    /// Puts a placement into force that was planned elsewhere, over the same ranks.
    ///
    /// # Errors
    ///
    /// If it has other experts or ranks; the old table stays in force.
    pub fn apply(&self, placement: Placement) -> Result<PlacementChange, PlacementError> {
        let config = self.config();
        self.swap(&config, placement)
    }

    /// The one place where the table changes. The caller holds the lock on the configuration.
    fn swap(
        &self,
        config: &ExpertMapManagerConfig,
        placement: Placement,
    ) -> Result<PlacementChange, PlacementError> {
        let old = self.snapshot();
        let new = config.table(placement, old.generation() + 1)?;
        let change = PlacementChange::between(old.placement(), new.placement());
        self.table.store(Arc::new(new));
        Ok(change)
    }

    /// The strategy that was requested.
    pub fn strategy(&self) -> Arc<dyn PlacementStrategy> {
        self.config().strategy.clone()
    }
}

impl RoutingTableProvider for ExpertMapManager {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.table.load_full()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use moekit_routing::Rank;
    use serde::{Deserialize, Serialize};

    use super::*;

    /// Rotates experts by a setting; refuses more than 4 ranks.
    #[derive(Debug, Serialize, Deserialize)]
    struct Rotate(usize);

    #[typetag::serde(name = "manager-test-rotate")]
    impl PlacementStrategy for Rotate {
        fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
            let (experts, ranks) = (
                request.num_logical_experts(),
                request.topology().num_ranks(),
            );
            if ranks > 4 {
                return Err(PlacementError::precondition(
                    "rotate",
                    format!("{ranks} ranks, at most 4"),
                ));
            }
            let slots = (0..request.num_slots())
                .map(|s| (s + self.0) % experts)
                .collect();
            ModelPlacement::new(vec![Placement::new(
                experts,
                slots,
                request.rank_offsets(),
            )?])
        }
    }

    fn manager(ranks: usize) -> ExpertMapManager {
        ExpertMapManagerConfig::new(Arc::new(Rotate(1)), Topology::new(ranks).unwrap(), 8)
            .with_shared_experts(1)
            .init()
            .unwrap()
    }

    #[test]
    fn one_to_many_and_back() {
        let manager = manager(1);
        let before = manager.snapshot();
        for (generation, ranks) in [4, 3, 1].into_iter().enumerate() {
            let update = TopologyUpdate::new(Topology::new(ranks).unwrap());
            manager.update(update, None).unwrap();
            let table = manager.snapshot();
            assert_eq!(table.num_ranks(), ranks);
            assert_eq!(table.generation(), generation as u64 + 1);
            assert_eq!(
                table.num_local_experts(Rank::new(0)),
                Some(8usize.div_ceil(ranks) + 1)
            );
        }
        assert_eq!(manager.snapshot().placement(), before.placement());
        assert_eq!(before.generation(), 0, "a snapshot does not change");
    }

    #[test]
    fn counts_may_change_with_the_topology() {
        let manager = manager(2);
        let update = TopologyUpdate::new(Topology::new(2).unwrap())
            .with_logical_experts(5)
            .with_redundant_experts(2);
        manager.update(update, None).unwrap();
        let table = manager.snapshot();
        assert_eq!(
            (table.num_logical_experts(), table.num_physical_experts()),
            (5, 7)
        );
    }

    #[test]
    fn a_failed_update_changes_nothing() {
        let manager = manager(2);
        let before = manager.snapshot();
        let five = TopologyUpdate::new(Topology::new(5).unwrap()).with_logical_experts(4);
        assert!(
            manager
                .update(five, None)
                .unwrap_err()
                .to_string()
                .contains("5 ranks")
        );
        let nan = TopologyUpdate::new(Topology::new(2).unwrap());
        assert!(manager.update(nan, Some(&[f64::NAN; 8])).is_err());
        let foreign = Placement::from_ranks(8, &[[0, 1, 2, 3, 4, 5, 6, 7]]).unwrap();
        assert!(manager.apply(foreign).is_err());
        assert!(Arc::ptr_eq(&before, &manager.snapshot()));
        let same = TopologyUpdate::new(Topology::new(2).unwrap());
        assert!(
            manager.update(same, None).unwrap().is_empty(),
            "the requested 8 experts are kept"
        );
    }

    /// Writers alternate between two placements that readers can tell apart by any single entry.
    #[test]
    fn readers_see_one_generation_or_the_other() {
        let manager = manager(4);
        let done = AtomicBool::new(false);
        let rotated = |by: usize| {
            let slots: Vec<usize> = (0..8).map(|s| (s + by) % 8).collect();
            Placement::new(8, slots, vec![0, 2, 4, 6, 8]).unwrap()
        };
        std::thread::scope(|scope| {
            let readers: Vec<_> = (0..4)
                .map(|_| {
                    scope.spawn(|| {
                        let mut last = 0;
                        let mut reads = 0u64;
                        while !done.load(Ordering::Acquire) || reads == 0 {
                            let table = manager.snapshot();
                            assert!(table.generation() >= last, "generations never go back");
                            last = table.generation();
                            // Generation g > 0 is rotated by g mod 8, everywhere.
                            let by = if last == 0 { 1 } else { last as usize % 8 };
                            for slot in 0..8 {
                                let expert = (slot + by) % 8;
                                let rank = Rank::new(slot / 2);
                                assert_eq!(
                                    table.local_to_global(rank).unwrap()[slot % 2].index(),
                                    expert
                                );
                                assert_eq!(
                                    table.expert_map(rank).unwrap()[expert],
                                    (slot % 2) as i32
                                );
                                assert_eq!(table.global_to_physical()[expert].index(), slot);
                            }
                            reads += 1;
                        }
                        reads
                    })
                })
                .collect();
            for generation in 1..=2000 {
                manager.apply(rotated(generation % 8)).unwrap();
            }
            done.store(true, Ordering::Release);
            for reader in readers {
                assert!(reader.join().unwrap() > 0);
            }
        });
        assert_eq!(manager.snapshot().generation(), 2000);
    }
}
