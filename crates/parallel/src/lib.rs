//! Communicators, dispatch and combine of expert parallelism.
//!
//! A [`Communicator`] is one rank's end of an EP group: collectives and messages over opaque
//! [`Buffer`]s. [`CommunicatorExt`] speaks in values (`f32`, `i64`, ...) on top of it. The ranks of
//! a [`ThreadGroup`] are threads of this process, those of a [`TcpGroup`] processes that it starts;
//! with the feature `mpi` those of an `MpiGroup` are processes of an MPI job. Groups that come and
//! go are those of a [`ThreadWorld`], or, over any transport whose ranks are there from the
//! beginning, of a [`RankPool`]. [`EpDispatcher`] takes the tokens of a fused MoE layer from rank to
//! rank over any communicator.
//!
//! ```
//! use moekit_parallel::{CommError, Communicator, CommunicatorExt, ReduceOp, ThreadGroup};
//!
//! // Rank r contributes r + 1; every rank gets the sum.
//! let sums = ThreadGroup::run(3, |comm| {
//!     let mine = vec![comm.rank().index() as f32 + 1.0];
//!     comm.all_reduce_values(mine, ReduceOp::Sum)
//! })?;
//! assert_eq!(sums, vec![vec![6.0]; 3]);
//! # Ok::<(), moekit_parallel::GroupError>(())
//! ```

// Tests of the library and its integration tests share code.
#[cfg(test)]
extern crate self as moekit_parallel;

mod agreement;
mod blocks;
mod buffer;
mod call;
mod collectives;
mod communicator;
mod dispatch;
mod error;
mod group_error;
#[cfg(feature = "mpi")]
mod mpi;
mod notice;
mod pause;
mod pool;
mod reduce;
mod standing;
mod tcp;
mod thread;
#[cfg(test)]
mod watchdog;

pub use blocks::Blocks;
pub use buffer::Buffer;
pub use communicator::{Communicator, CommunicatorExt, MAX_TAG};
pub use dispatch::EpDispatcher;
pub use error::CommError;
pub use group_error::GroupError;
#[cfg(feature = "mpi")]
pub use mpi::{MpiCommunicator, MpiGroup};
pub use pool::{PoolMember, RankPool};
pub use reduce::{ElementType, ReduceOp, Reducible};
pub use tcp::{TcpCommunicator, TcpGroup};
pub use thread::{ThreadCommunicator, ThreadGroup, ThreadMember, ThreadWorld};
