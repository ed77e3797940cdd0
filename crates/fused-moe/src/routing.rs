use std::fmt::Debug;
use std::sync::Arc;

use moekit_routing::{
    ExpertRouting, LogicalExpert, Placement, Rank, RoutingError, RoutingTable,
    RoutingTableProvider, Topology,
};

/// One rank's view of the routing tables of a layer, from the `ExpertMapManager` of
/// `moekit-placement` or any other provider.
///
/// A quantization backend loads the experts of a rank by it before there is a layer.
#[derive(Clone, Debug)]
pub struct LayerRouting {
    provider: Arc<dyn RoutingTableProvider>,
    rank: Rank,
}

impl LayerRouting {
    /// The view of `rank`.
    pub fn new(provider: Arc<dyn RoutingTableProvider>, rank: Rank) -> Self {
        Self { provider, rank }
    }

    /// Who gives out the tables.
    pub fn provider(&self) -> &Arc<dyn RoutingTableProvider> {
        &self.provider
    }
}

impl ExpertRouting for LayerRouting {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        self.provider.snapshot()
    }
}

/// The table of a layer that never changes.
#[derive(Debug)]
pub(crate) struct FixedTable(pub(crate) Arc<RoutingTable>);

impl FixedTable {
    /// All experts on one rank, in order.
    pub(crate) fn one_rank(num_experts: usize) -> Result<Self, RoutingError> {
        let placement = Placement::new(
            num_experts,
            (0..num_experts).collect(),
            vec![0, num_experts],
        )?;
        let table = RoutingTable::new(placement, Topology::new(1)?, 0, 0)?;
        Ok(Self(Arc::new(table)))
    }
}

impl RoutingTableProvider for FixedTable {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.0.clone()
    }
}

/// The experts of a rank's slots, empty if the table lacks the rank.
pub(crate) fn experts_of(table: &RoutingTable, rank: Rank) -> &[LogicalExpert] {
    table.local_to_global(rank).unwrap_or_default()
}
