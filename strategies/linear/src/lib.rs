//! The linear placement strategy.
