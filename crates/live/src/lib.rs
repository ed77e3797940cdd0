//! Expert parallelism at run time.
//!
//! A [`LiveRank`] runs the MoE layers of one rank, watches who gets how many tokens, and moves
//! experts while tokens flow: rank 0 plans on a thread of its own, all ranks exchange pieces of
//! experts between forward passes within a budget, and a layer changes its weights and its table in
//! one swap, on all ranks in the same step. Ranks come and go; what a lost rank alone held is read
//! from the checkpoint again. Whatever fails is a [`RebalanceState`] and an [`Event`], and is tried
//! again.
//!
//! ```text
//! forward(layer 0) ... forward(layer L-1)   end_step   forward ...
//!                                           |
//!          one all-to-all: how far I am, load (to rank 0), a piece of an expert
//!          all ready -> swap (weights, table) of one layer, everywhere
//! ```

mod change;
mod checkpoint;
mod config;
mod error;
mod expert;
mod form;
mod frame;
mod group;
mod layer;
mod leader;
mod load;
mod migration;
mod planner;
mod rank;
mod source;
mod stages;
mod state;
mod task;
mod telemetry;

pub use change::Cusum;
pub use checkpoint::CheckpointExperts;
pub use config::{CostModel, LiveConfig, Triggers};
pub use error::{LiveError, SourceError};
pub use expert::ExpertError;
pub use group::{FixedGroup, Group, Membership};
pub use layer::{LayerParts, LiveOutput, SharedLayer, Unserved};
pub use load::Window;
pub use rank::LiveRank;
pub use source::ExpertSource;
pub use state::{Event, LoadReport, RebalanceState, StepReport};
