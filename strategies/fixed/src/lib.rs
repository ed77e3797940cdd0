//! The fixed placement strategy.
