//! How the experts of a layer get from one placement to the next while tokens flow.
//!
//! # The model
//!
//! A rank has, for a layer, the slots of the placement in force, those that the next placement adds,
//! and some *staging buffers* of one expert each. While a stage of the migration runs, the placement
//! in force stays whole: experts arrive only in added slots and staging buffers, sources are only
//! slots in force, and nothing is written to these. So every replica that the table names is complete
//! at every moment, rounds may be spread over as many forward passes as one likes, and a stage that
//! fails is forgotten by throwing away what arrived. The commit is local: each rank copies from its
//! staging buffers into its slots and permutes its slots, in an order in which nothing is read after
//! it was overwritten, and the table changes. All the ranks do so between the same two forward passes.
//!
//! The other way, to receive straight into slots that are still named by the table, needs no staging
//! but takes replicas out of service during the rounds and leaves a broken layer behind when a rank
//! fails. Staging costs memory instead, at most the number of experts that a rank receives in one
//! layer, since layers migrate one after the other. If that is too much,
//! [`MigrationPlanner::with_staging`] splits the migration of a layer into stages, each of which ends in
//! a valid placement that covers every expert. One buffer is always enough, and no expert travels
//! twice.
//!
//! # Sources and rounds
//!
//! An expert that its rank holds already is copied or stays. Others come from a replica on the same
//! node if there is one, else from another node, such that the largest number that a rank sends is as
//! small as it can be (an optimal semi-matching). They travel in rounds in which a rank sends to at
//! most one rank and receives from at most one, in as few rounds as there can be (an edge colouring).
//! An expert that no living rank holds is a [`CheckpointRead`].
//!
//! # Budgets
//!
//! [`MigrationPlanner::cut`] chooses, of a model's migration, what lowers the largest rank load most per
//! byte and fits a budget: with it, a large migration takes place over many steps, each of them
//! from a valid placement to a valid placement.

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
