//! Deciding which rank holds which expert.
//!
//! A [`PlacementStrategy`] is a pure function from a [`PlacementRequest`] (shape, topology,
//! observed [`ExpertLoad`], placement in force) to a [`ModelPlacement`]. Strategies are plugins:
//! a configuration names one, [`strategy_from_value`] finds it. [`balance`] says how good a
//! placement is, and [`ExpertMapManager`] keeps the tables of a layer in step with it.
//!
//! ```
//! use moekit_placement::{
//!     ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, Topology,
//!     typetag,
//! };
//! use serde::{Deserialize, Serialize};
//!
//! /// Deals experts like cards, last expert first.
//! #[derive(Debug, Serialize, Deserialize, schemars::JsonSchema)]
//! struct Reversed {}
//!
//! #[typetag::serde(name = "reversed")]
//! impl PlacementStrategy for Reversed {
//!     fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
//!         let experts = request.num_logical_experts();
//!         let slots = (0..request.num_slots()).map(|s| (experts - 1) - s % experts).collect();
//!         let layer = Placement::new(experts, slots, request.rank_offsets())?;
//!         ModelPlacement::new(vec![layer; request.num_layers()])
//!     }
//! }
//!
//! moekit_placement::register_strategy! {
//!     Reversed, name: "reversed", summary: "Last expert first", example: Reversed {}
//! }
//!
//! # fn main() -> Result<(), PlacementError> {
//! let strategy = moekit_placement::strategy_from_value(serde_json::json!({"strategy": "reversed"}))?;
//! let topology = Topology::new(2)?;
//! let plan = strategy.plan(&PlacementRequest::new(1, 4, &topology)?)?;
//! assert_eq!(plan.layers()[0].experts_of(moekit_routing::Rank::new(0)).unwrap()[0].index(), 3);
//! # Ok(())
//! # }
//! ```

pub mod balance;
pub mod bound;
mod change;
pub mod compat;
mod error;
mod load;
mod manager;
mod migration;
mod model;
pub mod order;
mod request;
mod strategy;

pub use change::{PlacementChange, RankChange};
pub use error::PlacementError;
pub use load::{ExpertLoad, LoadTrace};
pub use manager::{ExpertMapManager, ExpertMapManagerConfig, TopologyUpdate};
pub use migration::{
    Buffer, CheckpointRead, LayerMigration, Link, LinkTraffic, LocalMove, MigrationCut,
    MigrationPlanner, MigrationStage, MigrationSummary, ModelMigration, RankCommit, RankTraffic,
    StepBudget, Traffic, Transfer, placement_in_group,
};
pub use model::{ModelPlacement, PlacementFile};
pub use request::{MigrationBudget, PlacementRequest};
pub use strategy::{
    Capabilities, PlacementStrategy, STRATEGY_KIND, linked_strategies, strategy_from_value,
};

// What a strategy's crate needs besides this one, in the versions that fit.
#[doc(no_inline)]
pub use moekit_plugin as plugin;
#[doc(no_inline)]
pub use moekit_plugin::link_plugins;
#[doc(no_inline)]
pub use moekit_routing::{Placement, RoutingError, Topology, even_offsets};
#[doc(no_inline)]
pub use typetag;
