use std::error::Error;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use moekit_routing::Rank;
use mpi::environment::Universe;
use mpi::topology::{Communicator as _, SimpleCommunicator};
use mpi::{Threading, environment};

use super::communicator::MpiCommunicator;
use super::state::{Group, Process};
use super::sys::Mpi;
use crate::group_error::End;
use crate::notice::peer_failed;
use crate::pause::pause;
use crate::standing::Departure;
use crate::{CommError, GroupError};

/// The group whose ranks are the processes that `mpirun` started.
#[derive(Debug)]
#[non_exhaustive]
pub struct MpiGroup;

impl MpiGroup {
    /// Runs `body` as this process's rank and returns what it returned, when the bodies of all
    /// ranks have. To be called once in a process, by all processes of the job.
    ///
    /// As with [`ThreadGroup::run`](crate::ThreadGroup::run), a rank that panics or returns an error
    /// ends the group: the calls of all other ranks return [`CommError::PeerFailed`]. After that MPI
    /// cannot be shut down in an orderly way: print what is to be printed and call
    /// [`MpiGroup::end_job`], which does not return.
    ///
    /// # Arguments
    ///
    /// * `on_failure`: called on the rank that fails first, before the others hear of it: what it
    ///   prints is out before any process ends.
    ///
    /// # Errors
    ///
    /// The error or panic of the rank that failed first, on all ranks; [`GroupError::Transport`] if
    /// MPI cannot be started.
    pub fn run<T, E, F>(body: F, on_failure: impl FnOnce(&GroupError)) -> Result<T, GroupError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        F: FnOnce(MpiCommunicator) -> Result<T, E>,
    {
        let (universe, world) = start()?;
        let comm = world.share();
        // After a panic nothing of the rank is used but its message.
        let end = End::of(catch_unwind(AssertUnwindSafe(|| {
            body(comm).map_err(Into::into)
        })));
        let result = match end {
            Ok(value) => world.leave().map(|()| value),
            Err(end) => Err(world.fail(end, on_failure)),
        };
        match result {
            Ok(value) => {
                drop(universe);
                Ok(value)
            }
            Err(error) => {
                mem::forget(universe);
                Err(error)
            }
        }
    }

    /// Ends all processes of the job, which has failed, with this status.
    pub fn end_job(status: i32) -> ! {
        if environment::is_initialized() && !environment::is_finalized() {
            SimpleCommunicator::world().abort(status);
        }
        std::process::exit(status)
    }
}

fn start() -> Result<(Universe, MpiCommunicator), GroupError> {
    let transport = |message: String| GroupError::Transport { message };
    let (universe, threading) = mpi::initialize_with_threading(Threading::Serialized)
        .ok_or_else(|| transport("MPI has been started before in this process".to_owned()))?;
    if threading < Threading::Serialized {
        return Err(transport(format!(
            "this MPI library allows calls of one thread only ({threading:?}); one that gives at \
             least MPI_THREAD_SERIALIZED is needed"
        )));
    }
    let world = universe.world();
    let index = |number: i32| usize::try_from(number).unwrap_or(0);
    let (rank, size) = (index(world.rank()), index(world.size()));
    let process = Arc::new(Process::new(Mpi::new()));
    let world = MpiCommunicator::world(process, rank, size)
        .ok_or_else(|| transport("MPI made no group of all processes".to_owned()))?;
    Ok((universe, world))
}

impl MpiCommunicator {
    /// Makes no further call, and lets MPI work until no other rank does either.
    fn leave(&self) -> Result<(), GroupError> {
        self.process.lock().return_rank(None);
        let mut rounds = 0;
        loop {
            let mut state = self.process.lock();
            state.progress();
            if state.groups.is_empty() {
                return Ok(());
            }
            // The world stays if a rank has failed.
            let world = state.groups.get(&self.id);
            if let Some(error) = world.and_then(|world| self.failed_peer(world)) {
                return Err(error);
            }
            drop(state);
            pause(rounds);
            rounds += 1;
        }
    }

    /// Reports the end of this rank, or that of the rank to which it is due.
    fn fail(&self, end: End, on_failure: impl FnOnce(&GroupError)) -> GroupError {
        let message = end.message(self.rank);
        let mut state = self.process.lock();
        // What the body has dropped on its way out has failed with it.
        state.listen();
        let is_consequence = state.has_failed_peer();
        // Subgroups first: the rank that has failed before may wait for this one there.
        state.return_subgroups(self.id, &message);
        drop(state);
        if let Some(error) = self.first_failure(is_consequence) {
            return error;
        }
        let error = end.into_error(self.rank, self.size);
        on_failure(&error);
        let mut state = self.process.lock();
        state.return_rank(Some(&message));
        state.progress();
        error
    }

    /// The failure of another rank of which that of this one is a consequence.
    ///
    /// Nobody waits in a circle here: a rank that has ended the world itself does not wait, and the
    /// failure of a subgroup is that of a rank that had heard of none when it failed.
    fn first_failure(&self, is_consequence: bool) -> Option<GroupError> {
        let mut rounds = 0;
        loop {
            let mut state = self.process.lock();
            state.progress();
            let world = state.groups.get(&self.id)?;
            match world.standing.failure() {
                Some(CommError::PeerFailed { rank, .. }) if rank.index() != self.rank => {
                    if world.standing.gone(rank.index()).is_some() {
                        return self.failed_peer(world);
                    }
                }
                None if is_consequence => {}
                _ => return None,
            }
            drop(state);
            pause(rounds);
            rounds += 1;
        }
    }

    fn failed_peer(&self, world: &Group) -> Option<GroupError> {
        let mut gone = world.standing.all_gone();
        let (rank, message) = gone.find_map(|(rank, gone)| match &gone.how {
            Departure::Failed(message) => Some((rank, message.clone())),
            Departure::Returned | Departure::Lost => None,
        })?;
        Some(GroupError::RankFailed {
            rank: Rank::new(rank),
            size: self.size,
            error: peer_failed(rank, &message).into(),
            message,
        })
    }
}
