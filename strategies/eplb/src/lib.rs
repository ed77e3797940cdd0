//! The eplb placement strategy.
