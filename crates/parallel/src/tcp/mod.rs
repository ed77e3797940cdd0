//! Ranks as processes, over TCP: a group outlives processes that are killed.
//!
//! Each process holds a connection to each other one. The kernel closes those of a process that
//! ends, however it ends, so that all others hear of it without asking. A thread per connection
//! takes in what comes, also while nobody waits for it; so whoever sends gets rid of its bytes, and
//! no two processes wait for each other to read.

mod communicator;
mod end;
mod frame;
mod group;
mod mesh;
mod process;

pub use communicator::TcpCommunicator;
pub use group::TcpGroup;
