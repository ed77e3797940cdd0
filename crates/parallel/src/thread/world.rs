use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use moekit_routing::Rank;

use super::communicator::{Shared, ThreadCommunicator};
use crate::CommError;

/// Threads that form one group after another, as members come, leave or are lost.
///
/// A thread [enters](Self::enter) and holds its [`ThreadMember`]; the group in force ends with the
/// first member that leaves or asks for the next one. The next group is made of all members of the
/// last one that are still there and of all that wait to be let in, in the order in which they entered.
/// When all members of a group have left there is no next one.
///
/// ```
/// use moekit_parallel::{CommError, Communicator, ThreadWorld};
///
/// let world = ThreadWorld::new(2);
/// let (first, second) = (world.enter(), world.enter());
/// let leaves = std::thread::spawn(move || Ok::<_, CommError>(second.regroup()?.1.size()));
/// assert_eq!(first.regroup()?.1.size(), 2);
/// assert_eq!(leaves.join().ok(), Some(Ok(2)));
/// // The second member is gone, and the first goes on alone.
/// let (members, alone) = first.regroup()?;
/// assert_eq!((members, alone.size()), (vec![0], 1));
/// // Nobody is left to let another in.
/// drop(first);
/// assert_eq!(world.enter().regroup().err(), Some(CommError::NoGroup));
/// # Ok::<(), CommError>(())
/// ```
#[derive(Clone, Debug)]
pub struct ThreadWorld(Arc<World>);

#[derive(Debug)]
struct World {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    next_id: u64,
    /// How many must wait for the first group.
    first_size: usize,
    group: Option<InForce>,
    /// Members that have entered, and neither asked for a group nor left.
    entering: BTreeSet<u64>,
    /// Members that are in a call of [`ThreadMember::regroup`].
    waiting: BTreeSet<u64>,
    /// Ends of the group in force that their members have not taken yet.
    formed: BTreeMap<u64, (Vec<u64>, ThreadCommunicator)>,
}

/// The last group that was formed.
#[derive(Debug)]
struct InForce {
    shared: Arc<Shared>,
    /// The member of each rank.
    ranks: Vec<u64>,
    /// Those of them that have not left.
    present: BTreeSet<u64>,
}

impl ThreadWorld {
    /// A world whose first group forms when `first_size` members wait for it.
    pub fn new(first_size: usize) -> Self {
        let state = State {
            next_id: 0,
            first_size,
            group: None,
            entering: BTreeSet::new(),
            waiting: BTreeSet::new(),
            formed: BTreeMap::new(),
        };
        Self(Arc::new(World {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }))
    }

    /// A new member, without a group until it [asks](ThreadMember::regroup) for one.
    pub fn enter(&self) -> ThreadMember {
        let mut state = self.0.lock();
        let id = state.next_id;
        state.next_id += 1;
        state.entering.insert(id);
        ThreadMember {
            id,
            world: self.0.clone(),
        }
    }

    /// Waits until all members that have entered wait for a group, are in one, or have left again.
    pub fn wait_for_newcomers(&self) {
        let mut state = self.0.lock();
        while !state.entering.is_empty() {
            state = self.0.wait(state);
        }
    }
}

impl World {
    /// Poison says nothing: no code panics in here.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let state = self.changed.wait(state);
        state.unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether all members of the last group have left: who waits would be another first group.
    fn is_over(&self) -> bool {
        let last = self.group.as_ref();
        last.is_some_and(|group| group.present.is_empty())
    }

    /// Forms the next group if all that are left of the last one wait for it.
    fn form_if_complete(&mut self) {
        let complete = match &self.group {
            Some(group) => group.present.is_subset(&self.waiting),
            None => self.waiting.len() >= self.first_size,
        };
        if !complete || self.waiting.is_empty() || self.is_over() {
            return;
        }
        let present = std::mem::take(&mut self.waiting);
        let ranks: Vec<u64> = present.iter().copied().collect();
        let shared = Arc::new(Shared::new(ranks.len()));
        for (rank, &id) in ranks.iter().enumerate() {
            let comm = ThreadCommunicator::new(rank, shared.clone());
            self.formed.insert(id, (ranks.clone(), comm));
        }
        self.group = Some(InForce {
            shared,
            ranks,
            present,
        });
    }

    /// Ends the group in force in the name of one of its members.
    fn end_group(&mut self, id: u64, message: &str, leaves: bool) {
        let Some(group) = &mut self.group else { return };
        let Some(rank) = group.ranks.iter().position(|&member| member == id) else {
            return;
        };
        if leaves {
            group.present.remove(&id);
            group.shared.end_rank(rank, Some(message));
        } else {
            group.shared.fail(CommError::PeerFailed {
                rank: Rank::new(rank),
                message: message.to_owned(),
            });
        }
    }
}

/// A thread's place in a [`ThreadWorld`]. Whoever drops it, by a panic too, has left.
#[derive(Debug)]
pub struct ThreadMember {
    id: u64,
    world: Arc<World>,
}

impl ThreadMember {
    /// Its number, never used again.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many members wait for the next group. Does not wait.
    pub fn num_waiting(&self) -> usize {
        self.world.lock().waiting.len()
    }

    /// Ends the group in force, waits until all other members that are left of it have come here
    /// too, and returns the next group: the member of each rank, and this one's end.
    ///
    /// # Errors
    ///
    /// [`CommError::NoGroup`] if all members of the group that this one wants to be let into have
    /// left.
    pub fn regroup(&self) -> Result<(Vec<u64>, ThreadCommunicator), CommError> {
        let mut state = self.world.lock();
        state.end_group(self.id, "it goes on in another group", false);
        state.entering.remove(&self.id);
        state.waiting.insert(self.id);
        state.form_if_complete();
        self.world.changed.notify_all();
        loop {
            if let Some(formed) = state.formed.remove(&self.id) {
                return Ok(formed);
            }
            if state.is_over() {
                state.waiting.remove(&self.id);
                return Err(CommError::NoGroup);
            }
            state = self.world.wait(state);
        }
    }
}

impl Drop for ThreadMember {
    fn drop(&mut self) {
        let mut state = self.world.lock();
        state.end_group(self.id, "it has left the group", true);
        state.entering.remove(&self.id);
        state.waiting.remove(&self.id);
        state.formed.remove(&self.id);
        if state.group.is_none() {
            state.first_size = state.first_size.saturating_sub(1);
        }
        state.form_if_complete();
        self.world.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;
    use std::sync::Barrier;
    use std::thread;

    use super::*;
    use crate::watchdog::watched;
    use crate::{CommunicatorExt, ReduceOp};

    /// Sums member numbers over the group.
    fn sum(comm: &ThreadCommunicator, id: u64) -> Result<u64, CommError> {
        Ok(comm.all_reduce_values(vec![id], ReduceOp::Sum)?[0])
    }

    #[test]
    fn survivors_go_on_and_newcomers_are_let_in() {
        watched(|| {
            let world = ThreadWorld::new(3);
            let members: Vec<_> = (0..3).map(|_| world.enter()).collect();
            let late = world.enter();
            // The first group is the first three members to ask, so the last one waits for it.
            let formed = Arc::new(Barrier::new(4));
            let survivors: Vec<_> = members
                .into_iter()
                .map(|member| {
                    let formed = formed.clone();
                    thread::spawn(move || {
                        let (ranks, comm) = member.regroup().unwrap();
                        formed.wait();
                        assert_eq!(ranks, [0, 1, 2]);
                        assert_eq!(sum(&comm, member.id()), Ok(3));
                        if member.id() == 1 {
                            resume_unwind(Box::new("lost"));
                        }
                        let error = sum(&comm, member.id()).unwrap_err().to_string();
                        assert!(error.contains("rank 1") || error.contains("another group"));
                        let (ranks, comm) = member.regroup().unwrap();
                        let first = sum(&comm, member.id()).unwrap();
                        // The newcomer may have been there in time, or not.
                        assert!(ranks == [0, 2] || ranks == [0, 2, 3], "{ranks:?}");
                        assert_eq!(first, ranks.iter().sum::<u64>());
                        while member.num_waiting() == 0 && ranks.len() == 2 {
                            thread::yield_now();
                        }
                        if ranks.len() == 2 {
                            let (ranks, comm) = member.regroup().unwrap();
                            assert_eq!((ranks, sum(&comm, member.id())), (vec![0, 2, 3], Ok(5)));
                        }
                    })
                })
                .collect();
            let newcomer = thread::spawn(move || {
                formed.wait();
                let (ranks, comm) = late.regroup().unwrap();
                assert_eq!((ranks, sum(&comm, late.id())), (vec![0, 2, 3], Ok(5)));
            });
            let ends: Vec<bool> = survivors.into_iter().map(|t| t.join().is_ok()).collect();
            assert_eq!(ends, [true, false, true]);
            newcomer.join().unwrap();
        });
    }

    #[test]
    fn who_leaves_before_the_first_group_is_not_waited_for() {
        watched(|| {
            let world = ThreadWorld::new(2);
            let (first, second) = (world.enter(), world.enter());
            drop(second);
            assert_eq!(first.regroup().unwrap().0, [0]);
        });
    }

    #[test]
    fn who_waits_for_a_group_that_is_no_more_hears_of_it() {
        watched(|| {
            let world = ThreadWorld::new(1);
            let (member, waits, comes) = (world.enter(), world.enter(), world.enter());
            let members = |member: &ThreadMember| member.regroup().map(|(members, _)| members);
            assert_eq!(members(&member), Ok(vec![0]));
            let waits = thread::spawn(move || members(&waits));
            while member.num_waiting() == 0 {
                thread::yield_now();
            }
            drop(member);
            assert_eq!(waits.join().unwrap(), Err(CommError::NoGroup));
            assert_eq!(members(&comes), Err(CommError::NoGroup));
        });
    }

    #[test]
    fn newcomers_are_waited_for_until_they_wait_or_have_left() {
        watched(|| {
            let world = ThreadWorld::new(1);
            let member = world.enter();
            member.regroup().unwrap();
            let (waits, leaves) = (world.enter(), world.enter());
            let waits = thread::spawn(move || waits.regroup().unwrap().0);
            let leaves = thread::spawn(move || drop(leaves));
            world.wait_for_newcomers();
            assert_eq!(member.num_waiting(), 1);
            assert_eq!(member.regroup().unwrap().0, [0, 1]);
            assert_eq!(waits.join().unwrap(), [0, 1]);
            leaves.join().unwrap();
        });
    }
}
