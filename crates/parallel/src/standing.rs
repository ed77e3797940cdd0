//! How the ranks of a group fare, as far as one of them knows; between processes, which tell each
//! other in notices.

use moekit_routing::Rank;

use crate::CommError;
use crate::call::Call;
use crate::notice::{Notice, peer_failed};

/// A group, as one of its ranks sees it.
#[derive(Debug)]
pub(crate) struct Standing {
    rank: usize,
    /// The call that this rank is in.
    call: Option<Call>,
    /// Collectives that this rank has completed; also the position of the one under way.
    pub(crate) completed: u64,
    /// What has ended the group, first what came first, each with the collectives that the rank
    /// which reports it had completed: the others complete those too.
    failures: Vec<(u64, CommError)>,
    /// Ranks that make no further call.
    gone: Vec<Option<Gone>>,
}

/// A rank that makes no further call.
#[derive(Debug, Clone)]
pub(crate) struct Gone {
    /// Collectives that it had completed, as far as is known.
    pub(crate) completed: u64,
    pub(crate) how: Departure,
}

/// How a rank went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Departure {
    /// It has returned.
    Returned,
    /// It has failed with this message, which ends the group.
    Failed(String),
    /// Its process has ended without a word. That is no failure of the group: only what needs the
    /// rank fails.
    Lost,
}

impl Standing {
    pub(crate) fn new(rank: usize, size: usize) -> Self {
        Self {
            rank,
            call: None,
            completed: 0,
            failures: Vec::new(),
            gone: vec![None; size],
        }
    }

    /// Notes that this rank is in a call; refuses a second one at the same time.
    pub(crate) fn enter(&mut self, call: Call) -> Result<(), CommError> {
        match self.call {
            Some(other) => Err(CommError::Concurrent {
                rank: Rank::new(self.rank),
                call: call.to_string(),
                other_call: other.to_string(),
            }),
            None => {
                self.call = Some(call);
                Ok(())
            }
        }
    }

    pub(crate) fn leave_call(&mut self) {
        self.call = None;
    }

    /// The group has ended in the name of a rank; who says so had completed so many collectives.
    pub(crate) fn hear_failure(&mut self, rank: usize, completed: u64, message: &str) {
        self.failures.push((completed, peer_failed(rank, message)));
    }

    /// This rank makes no further call; what it tells the others. If it goes because another has
    /// failed, they are to hear of that first: what that one has told them may come later.
    pub(crate) fn last_words(&self, how: Departure) -> Vec<Notice> {
        let completed = self.completed;
        let cause = match self.failure() {
            Some(CommError::PeerFailed { rank, message }) => Some(Notice::Abort {
                completed,
                rank: rank.index(),
                message: message.clone(),
            }),
            _ => None,
        };
        let returned = Notice::returned(&Gone { completed, how });
        cause.into_iter().chain([returned]).collect()
    }

    /// A rank makes no further call. The first word counts.
    pub(crate) fn hear_gone(&mut self, source: usize, gone: Gone) {
        if self.gone[source].is_some() {
            return;
        }
        if let Departure::Failed(message) = &gone.how {
            self.hear_failure(source, gone.completed, message);
        }
        self.gone[source] = Some(gone);
    }

    /// How a rank went, if it is gone.
    pub(crate) fn gone(&self, rank: usize) -> Option<&Gone> {
        self.gone.get(rank).and_then(Option::as_ref)
    }

    /// The ranks that are gone, and how each went.
    pub(crate) fn all_gone(&self) -> impl Iterator<Item = (usize, &Gone)> {
        let gone = self.gone.iter().enumerate();
        gone.filter_map(|(rank, gone)| Some((rank, gone.as_ref()?)))
    }

    /// The error that ended the group first.
    pub(crate) fn failure(&self) -> Option<&CommError> {
        self.failures.first().map(|(_, error)| error)
    }

    /// Ends the group on this rank unless it has ended; returns what ended it.
    pub(crate) fn fail(&mut self, error: CommError) -> CommError {
        if self.failures.is_empty() {
            self.failures.push((self.completed, error));
        }
        self.failures[0].1.clone()
    }

    /// Why the collective under way can never end, if so.
    ///
    /// What a rank has completed all others have entered, and complete too as long as each of them
    /// keeps to this rule: a collective ends for all ranks or for none, unless a process is killed
    /// in the middle of one.
    pub(crate) fn hopeless(&self, call: Call) -> Option<CommError> {
        let mut failures = self.failures.iter();
        if let Some((_, error)) = failures.find(|(completed, _)| *completed <= self.completed) {
            return Some(error.clone());
        }
        let (rank, gone) = self
            .all_gone()
            .find(|(_, gone)| gone.completed <= self.completed)?;
        Some(gone_error(rank, &gone.how, call.to_string()))
    }

    /// Why no message of that rank can come, if so; notices of a rank come behind its messages.
    pub(crate) fn no_message(&self, from: usize, tag: u32) -> Option<CommError> {
        if let Some(error) = self.failure() {
            return Some(error.clone());
        }
        let call = Call::Recv { from, tag };
        if from == self.rank {
            return Some(CommError::Deadlock {
                waits: format!("rank {from} waits in {call}"),
            });
        }
        let gone = self.gone(from)?;
        Some(gone_error(from, &gone.how, call.to_string()))
    }
}

/// What it means to a call that it needs a rank which is gone.
pub(crate) fn gone_error(rank: usize, how: &Departure, call: String) -> CommError {
    match how {
        Departure::Returned => CommError::PeerReturned {
            rank: Rank::new(rank),
            call,
        },
        Departure::Failed(message) => peer_failed(rank, message),
        Departure::Lost => peer_failed(rank, "its process has ended"),
    }
}
