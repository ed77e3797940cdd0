use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use moekit_routing::Rank;

use super::state::State;
use super::subgroups::Subgroups;
use crate::call::{Call, Collective};
use crate::communicator::{check_peer, position_in};
use crate::{Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp};

/// The state of a group, the bell of each rank, and the groups made of its ranks.
#[derive(Debug)]
pub(super) struct Shared {
    state: Mutex<State>,
    bells: Vec<Condvar>,
    /// Locked before any state.
    subgroups: Mutex<Subgroups>,
}

impl Shared {
    pub(super) fn new(size: usize) -> Self {
        Self {
            state: Mutex::new(State::new(size)),
            bells: (0..size).map(|_| Condvar::new()).collect(),
            subgroups: Mutex::default(),
        }
    }

    /// Poison says nothing: a rank's panic is reported by the group, and no code panics in here.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn wake_all(&self) {
        self.bells.iter().for_each(Condvar::notify_all);
    }

    /// Ends the group with `error` unless it has ended; returns the error that ended it.
    pub(super) fn fail(&self, error: CommError) -> CommError {
        let error = self.lock().fail(error);
        self.wake_all();
        error
    }

    /// Notes in every group of the rank that it makes no further call, and why if it failed.
    pub(super) fn end_rank(&self, rank: usize, failure: Option<&str>) {
        let mut subgroups = self.lock_subgroups();
        let mut state = self.lock();
        if let Some(message) = failure {
            state.fail(CommError::PeerFailed {
                rank: Rank::new(rank),
                message: message.to_owned(),
            });
        }
        state.set_returned(rank);
        drop(state);
        self.wake_all();
        subgroups.end_rank(rank, failure);
    }

    fn lock_subgroups(&self) -> MutexGuard<'_, Subgroups> {
        self.subgroups
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A rank that is a thread, made by [`ThreadGroup::run`](crate::ThreadGroup::run).
///
/// Buffers move between ranks without a copy: a receiver shares the sender's memory. A deadlock
/// among the ranks is found when it closes, and is an error on all of them.
#[derive(Debug)]
pub struct ThreadCommunicator {
    rank: usize,
    shared: Arc<Shared>,
}

impl ThreadCommunicator {
    pub(super) fn new(rank: usize, shared: Arc<Shared>) -> Self {
        Self { rank, shared }
    }

    /// Refuses a collective: what this rank got wrong, the others would wait for in vain.
    fn refuse(&self, error: CommError) -> CommError {
        self.abort(&error.to_string());
        error
    }

    /// The common course of all collectives: give, wait for all, take.
    fn exchange(
        &self,
        collective: Collective,
        parts: Vec<Buffer>,
    ) -> Result<Vec<Buffer>, CommError> {
        let call = Call::Collective(collective);
        let mut state = self.shared.lock();
        if let Some(failure) = state.failure() {
            return Err(failure.clone());
        }
        if let Err(error) = state.admit(self.rank, call) {
            drop(state);
            return Err(self.refuse(error));
        }
        match state.contribute(self.rank, collective, parts) {
            Ok(false) => {}
            Ok(true) => self.shared.wake_all(),
            Err(error) => self.end(&mut state, error),
        }
        self.wait(state, call, |state| state.take_outcome(self.rank))
    }

    /// Waits until `ready` gives a value or it is certain that it never will.
    fn wait<T>(
        &self,
        mut state: MutexGuard<'_, State>,
        call: Call,
        mut ready: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, CommError> {
        state.set_waiting(self.rank, Some(call));
        let result = loop {
            if let Some(value) = ready(&mut state) {
                break Ok(value);
            }
            if let Some(failure) = state.failure() {
                break Err(failure.clone());
            }
            if let Some(error) = state.hopeless(self.rank, call) {
                // A message that cannot come concerns its receiver alone.
                if matches!(call, Call::Collective(_))
                    || matches!(error, CommError::Deadlock { .. })
                {
                    self.end(&mut state, error.clone());
                }
                break Err(error);
            }
            state = self.shared.bells[self.rank]
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        state.set_waiting(self.rank, None);
        result
    }

    fn end(&self, state: &mut State, error: CommError) {
        state.fail(error);
        self.shared.wake_all();
    }
}

impl Communicator for ThreadCommunicator {
    fn rank(&self) -> Rank {
        Rank::new(self.rank)
    }

    fn size(&self) -> usize {
        self.shared.bells.len()
    }

    fn all_to_all_v(&self, send: Buffer, counts: &[usize]) -> Result<Blocks, CommError> {
        if counts.len() != self.size() {
            return Err(self.refuse(CommError::NumCounts {
                got: counts.len(),
                size: self.size(),
            }));
        }
        let parts = send.split(counts).map_err(|error| self.refuse(error))?;
        self.exchange(Collective::AllToAllV, parts).map(Blocks::new)
    }

    fn all_gather_v(&self, send: Buffer) -> Result<Blocks, CommError> {
        self.exchange(Collective::AllGatherV, vec![send])
            .map(Blocks::new)
    }

    fn all_reduce(
        &self,
        values: Buffer,
        element: ElementType,
        op: ReduceOp,
    ) -> Result<Buffer, CommError> {
        values
            .check_multiple_of(element.size())
            .map_err(|error| self.refuse(error))?;
        let count = values.len() / element.size();
        let collective = Collective::AllReduce { op, element, count };
        let reduced = self.exchange(collective, vec![values])?;
        Ok(reduced.into_iter().next().unwrap_or_default())
    }

    fn send(&self, to: Rank, tag: u32, message: Buffer) -> Result<(), CommError> {
        check_peer(to, tag, self.size())?;
        let to = to.index();
        let mut state = self.shared.lock();
        if let Some(failure) = state.failure() {
            return Err(failure.clone());
        }
        state.admit(self.rank, Call::Send { to, tag })?;
        state.post(self.rank, to, tag, message);
        self.shared.bells[to].notify_all();
        Ok(())
    }

    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError> {
        check_peer(from, tag, self.size())?;
        let from = from.index();
        let call = Call::Recv { from, tag };
        let state = self.shared.lock();
        state.admit(self.rank, call)?;
        self.wait(state, call, |state| {
            state.take_message(self.rank, from, tag)
        })
    }

    fn try_recv(&self, from: Rank, tag: u32) -> Result<Option<Buffer>, CommError> {
        check_peer(from, tag, self.size())?;
        let from = from.index();
        let mut state = self.shared.lock();
        state.admit(self.rank, Call::Recv { from, tag })?;
        Ok(state.take_message(self.rank, from, tag))
    }

    fn is_gone(&self, rank: Rank) -> bool {
        self.shared.lock().has_returned(rank.index())
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.exchange(Collective::Barrier, Vec::new()).map(drop)
    }

    fn abort(&self, message: &str) -> CommError {
        self.shared.fail(CommError::PeerFailed {
            rank: self.rank(),
            message: message.to_owned(),
        })
    }

    fn subgroup(&self, ranks: &[Rank]) -> Result<Option<Arc<dyn Communicator>>, CommError> {
        let Some(position) = position_in(ranks, self.rank, self.size())? else {
            return Ok(None);
        };
        let members = ranks.iter().map(|rank| rank.index()).collect();
        let shared = self.shared.lock_subgroups().join(members, position);
        Ok(Some(Arc::new(Self::new(position, shared))))
    }
}
