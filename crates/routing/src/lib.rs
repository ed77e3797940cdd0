//! Which physical expert serves which token of a Mixture-of-Experts layer.
//!
//! A [`Placement`] is the only thing that is decided: for one layer, which logical expert sits in
//! which physical slot, slots numbered rank by rank. A [`RoutingTable`] is everything that follows
//! from it, computed whole and never edited. Whoever needs the tables of a layer asks a
//! [`RoutingTableProvider`] or, for the view of one rank, an [`ExpertRouting`].
//!
//! ```
//! use moekit_routing::{LogicalExpert, Placement, Rank, RoutingTable, Topology};
//!
//! // Four experts on two ranks; expert 0 has a second replica.
//! let placement = Placement::from_ranks(4, &[vec![0, 1, 2], vec![3, 0]])?;
//! let table = RoutingTable::new(placement, Topology::new(2)?, 0, 0)?;
//!
//! assert_eq!(table.expert_map(Rank::new(1)), Some(&[1, -1, -1, 0][..]));
//! assert_eq!(table.replicas(LogicalExpert::new(0)).map(<[_]>::len), Some(2));
//! # Ok::<(), moekit_routing::RoutingError>(())
//! ```

mod error;
mod groups;
mod ids;
mod load;
mod placement;
mod selector;
mod table;
mod topology;
mod traits;

pub use error::RoutingError;
pub use groups::{GroupRank, ParallelConfig, ParallelGroups};
pub use ids::{LocalExpert, LogicalExpert, PhysicalExpert, Rank};
pub use load::StepLoad;
pub use placement::{Placement, even_offsets};
pub use selector::{
    CountsNeeded, CustomSelector, LocalFirst, ReplicaSelector, ReplicaShares, RoundRobin, RowHash,
    SelectContext, SelectReplica, Waterfill,
};
pub use table::{NOT_LOCAL, RankTable, RoutingTable};
pub use topology::Topology;
pub use traits::{ExpertRouting, RankView, RoutingTableProvider};
