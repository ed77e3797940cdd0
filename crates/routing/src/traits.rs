use std::fmt::Debug;
use std::sync::Arc;

use crate::{LocalExpert, LogicalExpert, Rank, RoutingError, RoutingTable};

/// Gives out the routing table in force.
pub trait RoutingTableProvider: Debug + Send + Sync {
    /// The table in force now. Take one snapshot per forward pass: every lookup in it belongs to
    /// the same generation.
    fn snapshot(&self) -> Arc<RoutingTable>;
}

impl<P: RoutingTableProvider + ?Sized> RoutingTableProvider for Arc<P> {
    fn snapshot(&self) -> Arc<RoutingTable> {
        (**self).snapshot()
    }
}

/// All that a quantization backend may know about the layer that uses it: which experts this rank
/// holds.
///
/// The provided methods each take a fresh snapshot; to relate several of them to each other, take
/// [`ExpertRouting::routing_table`] once and ask that.
pub trait ExpertRouting: Debug + Send + Sync {
    /// This rank.
    fn rank(&self) -> Rank;

    /// The table in force now.
    fn routing_table(&self) -> Arc<RoutingTable>;

    /// `E`, routed logical experts.
    fn num_logical_experts(&self) -> usize {
        self.routing_table().num_logical_experts()
    }

    /// `P`, routed slots over all ranks.
    fn num_physical_experts(&self) -> usize {
        self.routing_table().num_physical_experts()
    }

    /// `S`, shared experts fused as extra local slots.
    fn num_shared_experts(&self) -> usize {
        self.routing_table().num_shared_experts()
    }

    /// `L`, slots of this rank, fused shared experts included; 0 if the table lacks this rank.
    fn num_local_experts(&self) -> usize {
        self.routing_table()
            .num_local_experts(self.rank())
            .unwrap_or(0)
    }

    /// The expert in each slot of this rank, `[L]`.
    fn local_experts(&self) -> Vec<LogicalExpert> {
        let table = self.routing_table();
        table
            .local_to_global(self.rank())
            .map(<[_]>::to_vec)
            .unwrap_or_default()
    }

    /// The first slot of an expert on this rank, `None` if it is not here or not an expert.
    fn map_global_to_local(&self, id: i64) -> Option<LocalExpert> {
        self.routing_table().map_global_to_local(self.rank(), id)
    }

    /// Whether this rank holds the expert.
    fn is_local(&self, expert: LogicalExpert) -> bool {
        self.map_global_to_local(expert.raw()).is_some()
    }

    /// The expert map of this rank, `[E + S]`, see [`RankTable`](crate::RankTable).
    fn expert_map(&self) -> Vec<i32> {
        let table = self.routing_table();
        table
            .expert_map(self.rank())
            .map(<[_]>::to_vec)
            .unwrap_or_default()
    }
}

/// One rank's view of a fixed table, for whoever reads experts without a layer.
///
/// ```
/// use std::sync::Arc;
/// use moekit_routing::{ExpertRouting, Placement, Rank, RankView, RoutingTable, Topology};
///
/// let placement = Placement::from_ranks(3, &[vec![0, 1], vec![2]])?;
/// let table = Arc::new(RoutingTable::new(placement, Topology::new(2)?, 0, 0)?);
/// let view = RankView::new(Rank::new(1), table)?;
/// assert_eq!(view.num_local_experts(), 1);
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RankView {
    rank: Rank,
    table: Arc<RoutingTable>,
}

impl RankView {
    /// The view of a rank.
    ///
    /// # Errors
    ///
    /// If the table has no such rank.
    pub fn new(rank: Rank, table: Arc<RoutingTable>) -> Result<Self, RoutingError> {
        if rank.index() >= table.num_ranks() {
            return Err(RoutingError::UnknownRank {
                group: "EP",
                rank: rank.index(),
                size: table.num_ranks(),
            });
        }
        Ok(Self { rank, table })
    }
}

impl ExpertRouting for RankView {
    fn rank(&self) -> Rank {
        self.rank
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        self.table.clone()
    }
}
