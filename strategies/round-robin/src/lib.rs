//! The round-robin placement strategy.
