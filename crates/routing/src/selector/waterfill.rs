//! Water-filling.
mod balance;
mod graph;
mod pour;
mod shares;

pub use shares::ReplicaShares;
