//! Ranks as processes, over MPI.

mod communicator;
mod group;
mod state;
mod sys;

pub use communicator::MpiCommunicator;
pub use group::MpiGroup;
