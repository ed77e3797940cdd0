//! dev
#![allow(missing_docs, dead_code)]
pub mod certificate_draft;
mod connect;
mod counts;
mod enumerate;
mod exchange;
mod fresh;
mod greedy;
mod heap;
mod plan;
mod problem;
mod replan;
mod search;
mod seed;
mod state;
pub use plan::{LayerPlan, Planner};
pub use problem::{LayerProblem, PlanError, Settings};
