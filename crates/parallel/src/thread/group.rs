use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use moekit_routing::Rank;

use super::communicator::{Shared, ThreadCommunicator};
use crate::group_error::End;
use crate::{CommError, GroupError};

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
                .map(|rank| rank.join().unwrap_or_else(|panic| End::of(Err(panic))))
                .collect::<Vec<_>>())
        })?;
        let first = match shared.lock().failure() {
            Some(CommError::PeerFailed { rank, .. }) => Some(rank.index()),
            _ => None,
        };
        gather(ends, first)
    }
}

fn run_rank<T, E, F>(rank: usize, shared: &Arc<Shared>, body: &F) -> Result<T, End>
where
    E: Into<Box<dyn Error + Send + Sync>>,
    F: Fn(ThreadCommunicator) -> Result<T, E>,
{
    let comm = ThreadCommunicator::new(rank, Arc::clone(shared));
    // After a panic nothing of the rank is used but its message.
    let end = End::of(catch_unwind(AssertUnwindSafe(|| {
        body(comm).map_err(Into::into)
    })));
    let failure = end.as_ref().err().map(|end| end.message(rank));
    shared.end_rank(rank, failure.as_deref());
    end
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
    Err(end.into_error(rank, size))
}

fn peer_failed(rank: usize, message: String) -> CommError {
    CommError::PeerFailed {
        rank: Rank::new(rank),
        message,
    }
}
