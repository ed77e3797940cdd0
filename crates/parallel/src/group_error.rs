//! How ranks and groups end.

use std::any::Any;
use std::error::Error;
use std::io;

use moekit_routing::Rank;
use thiserror::Error;

use crate::CommError;

/// Why a group did not finish.
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
    /// What carries messages between processes does not work.
    #[error("no communication between processes: {message}")]
    Transport {
        /// What is wrong.
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

/// How the body of a rank ended, if not with a value.
pub(crate) enum End {
    Failed(Box<dyn Error + Send + Sync>),
    Panicked(String),
}

impl End {
    /// What the other ranks hear.
    pub(crate) fn message(&self, rank: usize) -> String {
        match self {
            Self::Failed(error) => message_of(rank, &**error),
            Self::Panicked(message) => format!("panicked: {message}"),
        }
    }

    pub(crate) fn into_error(self, rank: usize, size: usize) -> GroupError {
        let message = self.message(rank);
        let rank = Rank::new(rank);
        match self {
            Self::Failed(error) => GroupError::RankFailed {
                rank,
                size,
                message,
                error,
            },
            Self::Panicked(message) => GroupError::RankPanicked {
                rank,
                size,
                message,
            },
        }
    }

    /// The end of a body that panicked or returned an error.
    pub(crate) fn of<T>(
        caught: Result<Result<T, Box<dyn Error + Send + Sync>>, Box<dyn Any + Send>>,
    ) -> Result<T, Self> {
        match caught {
            Ok(result) => result.map_err(Self::Failed),
            Err(panic) => Err(Self::Panicked(text(&*panic))),
        }
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
