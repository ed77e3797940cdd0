//! What no plan, and no split of a step's tokens, can beat.
//!
//! [`load_bound`] bounds the busiest rank of a layer from below for *every* placement,
//! [`load_bound_at_speeds`] on ranks of different speeds.
//! [`optimal_split`] finds, for a *given* placement and the token counts of one step, the least that
//! the busiest rank can carry over all splits of the tokens to replicas, with a set of ranks that
//! proves it.

mod apportion;
mod certificate;
mod flow;

pub use apportion::{LoadBound, load_bound, load_bound_at_speeds};
pub use certificate::{SplitOptimum, optimal_split};
