use std::any::Any;
use std::error::Error;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use moekit_routing::Rank;
use thiserror::Error;

use super::communicator::{Shared, ThreadCommunicator};
use crate::CommError;

/// Why a group of threads did not finish.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GroupError {
    /// A group needs a rank.
    #[error("a group needs at least 1 rank, got 0")]
    Empty,
    /// A rank returned an error; the errors of other ranks that follow from it are not reported.
    #[error("rank {rank} of {size} failed: {message}")]
    RankFailed {
        /// The rank that failed first.
        rank: Rank,
        /// Size of the group.
        size: usize,
        /// Its error and what caused it, joined by `: `.
        message: String,
        /// The error itself, to be downcast.
        error: Box<dyn Error + Send + Sync>,
    },
    /// A rank panicked.
    #[error("rank {rank} of {size} panicked: {message}")]
    RankPanicked {
        /// The rank that panicked first.
        rank: Rank,
        /// Size of the group.
        size: usize,
        /// The message of the panic.
        message: String,
    },
    /// The system gave no thread.
    #[error("the thread of rank {rank} of {size} could not be started")]
    Spawn {
        /// The rank without a thread.
        rank: Rank,
        /// Size of the group.
        size: usize,
        /// What the system says.
        source: io::Error,
    },
}

/// A group whose ranks are threads of this process.
#[derive(Debug)]
#[non_exhaustive]
pub struct ThreadGroup;

impl ThreadGroup {
    /// Runs `body` once per rank, each on a thread of its own, and returns what the ranks returned,
    /// `[size]`, when all have ended.
    ///
    /// A rank that panics or returns an error ends the group: the calls of all other ranks return
    /// [`CommError::PeerFailed`]. A rank that returns a value early makes the calls that need it
    /// return [`CommError::PeerReturned`]. A communicator kept beyond its rank's `body` refuses
    /// every call.
    ///
    /// # Errors
    ///
    /// The error or panic of the rank that failed first, by name; [`GroupError::Empty`] if `size`
    /// is 0; [`GroupError::Spawn`]. It is not an error if every rank dealt with its errors and
    /// returned a value.
    ///
    /// ```
    /// use moekit_parallel::{Communicator, ThreadGroup};
    ///
    /// let error = ThreadGroup::run(4, |comm| {
    ///     if comm.rank().index() == 2 {
    ///         return Err("expert 7 is missing".to_owned());
    ///     }
    ///     comm.barrier().map_err(|error| error.to_string())
    /// });
    /// assert_eq!(error.unwrap_err().to_string(), "rank 2 of 4 failed: expert 7 is missing");
    /// ```
    pub fn run<T, E, F>(size: usize, body: F) -> Result<Vec<T>, GroupError>
    where
        T: Send,
        E: Into<Box<dyn Error + Send + Sync>>,
        F: Fn(ThreadCommunicator) -> Result<T, E> + Sync,
    {
        if size == 0 {
            return Err(GroupError::Empty);
        }
        let shared = Arc::new(Shared::new(size));
        let ends = thread::scope(|scope| {
            let mut ranks = Vec::with_capacity(size);
            for rank in 0..size {
                let (shared, body) = (&shared, &body);
                let spawned = thread::Builder::new()
                    .name(format!("rank {rank}"))
                    .spawn_scoped(scope, move || run_rank(rank, shared, body));
                match spawned {
                    Ok(handle) => ranks.push(handle),
                    Err(source) => {
                        shared.fail(peer_failed(
                            rank,
                            format!("its thread did not start: {source}"),
                        ));
                        let rank = Rank::new(rank);
                        return Err(GroupError::Spawn { rank, size, source });
                    }
                }
            }
            // A rank's panic is caught on its thread; one that escapes is not the body's.
            Ok(ranks
                .into_iter()
                .map(|rank| {
                    rank.join()
                        .unwrap_or_else(|panic| Err(End::Panicked(text(&*panic))))
                })
                .collect::<Vec<_>>())
        })?;
        let first = match shared.lock().failure() {
            Some(CommError::PeerFailed { rank, .. }) => Some(rank.index()),
            _ => None,
        };
        gather(ends, first)
    }
}

/// How the body of a rank ended, if not with a value.
enum End {
    Failed(Box<dyn Error + Send + Sync>),
    Panicked(String),
}

fn run_rank<T, E, F>(rank: usize, shared: &Arc<Shared>, body: &F) -> Result<T, End>
where
    E: Into<Box<dyn Error + Send + Sync>>,
    F: Fn(ThreadCommunicator) -> Result<T, E>,
{
    let comm = ThreadCommunicator::new(rank, Arc::clone(shared));
    // After a panic nothing of the rank is used but its message.
    match catch_unwind(AssertUnwindSafe(|| body(comm).map_err(Into::into))) {
        Ok(Ok(value)) => {
            shared.end_rank(rank, None);
            Ok(value)
        }
        Ok(Err(error)) => {
            shared.end_rank(rank, Some(&message_of(rank, &*error)));
            Err(End::Failed(error))
        }
        Err(panic) => {
            let message = text(&*panic);
            shared.end_rank(rank, Some(&format!("panicked: {message}")));
            Err(End::Panicked(message))
        }
    }
}

/// All values, or the end of the rank that ended the group (`first`), or else of the lowest rank
/// that failed.
fn gather<T>(ends: Vec<Result<T, End>>, first: Option<usize>) -> Result<Vec<T>, GroupError> {
    let size = ends.len();
    let mut failed: Option<(usize, End)> = None;
    let mut values = Vec::with_capacity(size);
    for (rank, end) in ends.into_iter().enumerate() {
        match end {
            Ok(value) => values.push(value),
            Err(end) if failed.is_none() || first == Some(rank) => failed = Some((rank, end)),
            Err(_) => {}
        }
    }
    let Some((rank, end)) = failed else {
        return Ok(values);
    };
    let rank = Rank::new(rank);
    Err(match end {
        End::Failed(error) => GroupError::RankFailed {
            message: message_of(rank.index(), &*error),
            rank,
            size,
            error,
        },
        End::Panicked(message) => GroupError::RankPanicked {
            rank,
            size,
            message,
        },
    })
}

fn peer_failed(rank: usize, message: String) -> CommError {
    CommError::PeerFailed {
        rank: Rank::new(rank),
        message,
    }
}

/// What a rank's error says: the error and what caused it, or what the rank said as it gave up.
fn message_of(rank: usize, error: &(dyn Error + Send + Sync + 'static)) -> String {
    match error.downcast_ref() {
        Some(CommError::PeerFailed { rank: own, message }) if own.index() == rank => {
            return message.clone();
        }
        _ => {}
    }
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    message.unwrap_or("(a value without a text)").to_owned()
}
