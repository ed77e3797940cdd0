//! Ranks as threads of one process.

mod communicator;
mod group;
mod state;
mod subgroups;
#[cfg(test)]
mod tests;
mod world;

pub use communicator::ThreadCommunicator;
pub use group::ThreadGroup;
pub use world::{ThreadMember, ThreadWorld};
