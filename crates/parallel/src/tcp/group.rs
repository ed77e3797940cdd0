use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command};
use std::sync::Arc;
use std::thread;

use moekit_routing::Rank;

use super::communicator::TcpCommunicator;
use super::mesh::{Seat, Starter, VARIABLE};
use super::process::Process;
use crate::GroupError;
use crate::group_error::End;
use crate::notice::peer_failed;
use crate::standing::Departure;

/// A group whose ranks are processes of this machine, connected by TCP over the loopback interface.
///
/// In contrast to the processes of an MPI job, the others live on when one is killed: see
/// [`TcpCommunicator`]. One process [starts](Self::spawn) the ranks, usually itself again, and each
/// of them [runs](Self::run) its part.
///
/// ```no_run
/// use std::process::Command;
/// use moekit_parallel::{Communicator, GroupError, TcpGroup};
///
/// fn main() -> Result<(), GroupError> {
///     if TcpGroup::is_rank() {
///         return TcpGroup::run(|comm| comm.barrier(), |error| eprintln!("{error}"));
///     }
///     let this = std::env::current_exe().expect("a program has a path");
///     for mut process in TcpGroup::spawn(4, |_| Command::new(&this))? {
///         let status = process.wait().expect("nobody else waits for it");
///         assert!(status.success());
///     }
///     Ok(())
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub struct TcpGroup;

impl TcpGroup {
    /// Starts the processes of a group. They belong to the caller, who waits for them, or kills them.
    ///
    /// # Arguments
    ///
    /// * `command` - what to run as each rank. It gets a variable of the environment that tells
    ///   [`TcpGroup::run`] which rank it is and how to find the others.
    ///
    /// # Errors
    ///
    /// [`GroupError::Empty`]; [`GroupError::Transport`] if a process cannot be started, without any
    /// being left behind.
    pub fn spawn(
        size: usize,
        mut command: impl FnMut(usize) -> Command,
    ) -> Result<Vec<Child>, GroupError> {
        if size == 0 {
            return Err(GroupError::Empty);
        }
        let starter = Starter::new(size).map_err(|error| transport(&error))?;
        let mut children = Vec::with_capacity(size);
        for rank in 0..size {
            let seat = starter.seat(rank).map_err(|error| transport(&error));
            let started = seat.and_then(|seat| {
                let mut command = command(rank);
                let command = command.env(VARIABLE, seat.to_text());
                command.spawn().map_err(|error| transport(&error))
            });
            match started {
                Ok(child) => children.push(child),
                Err(error) => {
                    end_all(&mut children);
                    return Err(error);
                }
            }
        }
        // If it goes wrong, each process finds out by itself.
        let served = thread::Builder::new().spawn(move || starter.serve());
        match served {
            Ok(_) => Ok(children),
            Err(error) => {
                end_all(&mut children);
                Err(transport(&error))
            }
        }
    }

    /// Whether this process was started as a rank.
    pub fn is_rank() -> bool {
        Seat::from_environment().is_some()
    }

    /// Runs `body` as this process's rank and returns what it returned, when the bodies of all
    /// ranks have, or their processes have ended. To be called once in a process that
    /// [was started](Self::spawn) as a rank.
    ///
    /// As with [`ThreadGroup::run`](crate::ThreadGroup::run), a rank that panics or returns an error
    /// ends the group: the calls of all other ranks return
    /// [`CommError::PeerFailed`](crate::CommError::PeerFailed). A process that is killed does not.
    ///
    /// # Arguments
    ///
    /// * `on_failure` - called on the rank that fails first, before the others hear of it.
    ///
    /// # Errors
    ///
    /// The error or panic of this rank, or of the one that failed before it;
    /// [`GroupError::Transport`] if the processes do not find each other.
    pub fn run<T, E, F>(body: F, on_failure: impl FnOnce(&GroupError)) -> Result<T, GroupError>
    where
        E: Into<Box<dyn Error + Send + Sync>>,
        F: FnOnce(TcpCommunicator) -> Result<T, E>,
    {
        let seat = Seat::from_environment().ok_or_else(|| GroupError::Transport {
            message: "this process was not started as a rank".to_owned(),
        })?;
        let connections = seat.take().map_err(|error| transport(&error))?;
        let process = Process::start(seat.rank, connections).map_err(|error| transport(&error))?;
        let comm = TcpCommunicator::world(process.clone(), seat.rank, seat.size);
        // After a panic nothing of the rank is used but its message.
        let end = End::of(catch_unwind(AssertUnwindSafe(|| {
            body(comm).map_err(Into::into)
        })));
        let result = match end {
            Ok(value) => leave(&process, seat).map(|()| value),
            Err(end) => Err(fail(&process, seat, end, on_failure)),
        };
        process.lock().ends.clear();
        process.close();
        result
    }
}

/// Makes no further call, and waits until no other rank does either: a connection that is closed
/// too early would take with it what is on its way.
fn leave(process: &Arc<Process>, seat: Seat) -> Result<(), GroupError> {
    process.post_end(Departure::Returned);
    let mut state = process.lock();
    loop {
        if let Some(error) = failed_before(&state.departed, seat) {
            return Err(error);
        }
        let mut others = (0..seat.size).filter(|&rank| rank != seat.rank);
        if others.all(|rank| state.departed[rank].is_some()) {
            return Ok(());
        }
        state = process.wait(state);
    }
}

/// Reports the end of this rank, or of that which failed before it.
fn fail(
    process: &Arc<Process>,
    seat: Seat,
    end: End,
    on_failure: impl FnOnce(&GroupError),
) -> GroupError {
    let message = end.message(seat.rank);
    let before = failed_before(&process.lock().departed, seat);
    let error = before.unwrap_or_else(|| {
        let error = end.into_error(seat.rank, seat.size);
        on_failure(&error);
        error
    });
    process.post_end(Departure::Failed(message));
    error
}

fn failed_before(departed: &[Option<Departure>], seat: Seat) -> Option<GroupError> {
    let mut departed = departed.iter().enumerate();
    let (rank, message) = departed.find_map(|(rank, how)| match how {
        Some(Departure::Failed(message)) => Some((rank, message.clone())),
        _ => None,
    })?;
    Some(GroupError::RankFailed {
        rank: Rank::new(rank),
        size: seat.size,
        error: peer_failed(rank, &message).into(),
        message,
    })
}

fn end_all(children: &mut [Child]) {
    for child in children {
        // One that has ended already is what is wanted.
        child.kill().ok();
        child.wait().ok();
    }
}

fn transport(error: &std::io::Error) -> GroupError {
    GroupError::Transport {
        message: error.to_string(),
    }
}
