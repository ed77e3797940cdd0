//! How the experts of a layer get from one placement to the next while tokens flow:
//! [`MigrationPlanner`] says by which model.
//!
//! `stage` plans one commit: who gets what, from whom (`sources`), when (`rounds`), and what each rank
//! copies at the end (`moves`). `walk` knows the placements in between; `cut` chooses among the ways
//! there, by `gain` or by staging buffers.

mod cut;
mod gain;
mod group;
mod moves;
mod plan;
mod planner;
mod rounds;
mod sources;
mod stage;
#[cfg(test)]
mod tests;
mod walk;

pub use cut::{MigrationCut, StepBudget};
pub use group::placement_in_group;
pub use plan::{
    Buffer, CheckpointRead, LayerMigration, Link, LinkTraffic, LocalMove, MigrationStage,
    MigrationSummary, ModelMigration, RankCommit, RankTraffic, Traffic, Transfer,
};
pub use planner::MigrationPlanner;
