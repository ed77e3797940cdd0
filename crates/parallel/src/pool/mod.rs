//! Groups that come and go among ranks that stay.

mod notice;
mod seats;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use moekit_routing::Rank;

use self::notice::Notice;
use self::seats::Seats;
use crate::pause::pause;
use crate::{CommError, Communicator, MAX_TAG};

/// The tag of the pool's messages: its communicator carries others beside them.
const TAG: u32 = MAX_TAG;

/// Ranks of which some form one group after another while the others wait as spares: elastic groups
/// over a transport whose ranks are there from the beginning, as the processes of an MPI job are.
///
/// Every rank of the communicator makes one pool of it. A rank [enters](Self::enter) and holds its
/// [`PoolMember`]; the group in force ends with the first member that leaves or asks for the next
/// one. The next group is made of all members of the last one that are still there and of all that
/// wait to be let in. Spares [wait until they are invited](Self::wait_for_invitation), and a rank
/// that has left is a spare again.
///
/// Nobody but the ranks themselves knows who is in: each tells all others when it waits and when it
/// leaves, and the first member that is left of the last group decides who is in the next, when all
/// others that are left wait. A rank that [is gone](Communicator::is_gone) has left with all that it
/// was; whatever it had told some of the others and not the rest, those that are left agree about the
/// next group. Until they do, a rank that makes no call of its pool is waited for.
///
/// ```
/// use std::sync::Arc;
/// use moekit_parallel::{CommError, Communicator, RankPool, ThreadGroup};
///
/// let sizes = ThreadGroup::run(3, |comm| {
///     let rank = comm.rank().index();
///     // The first group is rank 0 alone.
///     let pool = RankPool::new(Arc::new(comm), 1);
///     if rank > 0 && !pool.wait_for_invitation()? {
///         return Ok(0);
///     }
///     let member = pool.enter();
///     let (_, mut group) = member.regroup()?;
///     if rank == 0 {
///         assert_eq!(pool.invite(1)?, 1);
///         pool.wait_for_newcomers(1)?;
///         group = member.regroup()?.1;
///     }
///     group.barrier()?;
///     Ok::<_, CommError>(group.size())
/// })?;
/// assert_eq!(sizes, [2, 2, 0]);
/// # Ok::<(), moekit_parallel::GroupError>(())
/// ```
#[derive(Clone, Debug)]
pub struct RankPool(Arc<Pool>);

#[derive(Debug)]
struct Pool {
    comm: Arc<dyn Communicator>,
    seats: Mutex<Seats>,
}

impl RankPool {
    /// A pool whose first group are the first ranks of the communicator, and nobody else.
    ///
    /// # Arguments
    ///
    /// - `comm` - all ranks. The pool keeps the last tag of its messages for itself.
    /// - `first_size` - ranks of the first group, at least 1.
    pub fn new(comm: Arc<dyn Communicator>, first_size: usize) -> Self {
        let seats = Seats::new(comm.size(), comm.rank().index(), first_size);
        Self(Arc::new(Pool {
            comm,
            seats: Mutex::new(seats),
        }))
    }

    /// The communicator of all ranks.
    pub fn comm(&self) -> &Arc<dyn Communicator> {
        &self.0.comm
    }

    /// This rank as a new member, without a group until it [asks](PoolMember::regroup) for one. A
    /// rank is one member at a time.
    pub fn enter(&self) -> PoolMember {
        PoolMember {
            id: self.0.lock().enter(),
            pool: self.0.clone(),
            group: Mutex::default(),
        }
    }

    /// Asks spares to enter, those of lowest rank first, and returns how many there were to ask.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end.
    pub fn invite(&self, count: usize) -> Result<usize, CommError> {
        self.0.listen()?;
        let spares = self.0.lock().take_spares(count);
        for &rank in &spares {
            self.0.tell(rank, &Notice::Invited)?;
        }
        Ok(spares.len())
    }

    /// Waits until so many members wait to be let in: those that were invited come by themselves, and
    /// those of them that are gone are not waited for.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end.
    pub fn wait_for_newcomers(&self, count: usize) -> Result<(), CommError> {
        self.0.wait(|seats| seats.have_come(count).then_some(()))
    }

    /// Waits as a spare until this rank is invited: `true`. `false` when nobody is left that could
    /// do so.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end.
    pub fn wait_for_invitation(&self) -> Result<bool, CommError> {
        self.wait_for_invitation_while(|| Ok(()))
    }

    /// The same for a spare that has something else to do meanwhile, such as to take in messages:
    /// that is done again and again, and must not wait itself.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end, and those of `meanwhile`.
    pub fn wait_for_invitation_while<E: From<CommError>>(
        &self,
        meanwhile: impl FnMut() -> Result<(), E>,
    ) -> Result<bool, E> {
        let answer = |seats: &mut Seats| {
            if seats.take_invitation() {
                return Some(true);
            }
            seats.is_over().then_some(false)
        };
        self.0.wait_while(answer, meanwhile)
    }

    /// Whether all members of the last group have left, so that there can be no other group.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end.
    pub fn is_over(&self) -> Result<bool, CommError> {
        self.0.listen()?;
        Ok(self.0.lock().is_over())
    }
}

impl Pool {
    /// Poison says nothing: no code panics in here.
    fn lock(&self) -> MutexGuard<'_, Seats> {
        self.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the others have told.
    fn listen(&self) -> Result<(), CommError> {
        let others = (0..self.comm.size()).filter(|&r| r != self.comm.rank().index());
        for rank in others {
            // Asked before: what it has told is there when it is gone.
            let is_gone = self.comm.is_gone(Rank::new(rank));
            while let Some(message) = self.comm.try_recv(Rank::new(rank), TAG)? {
                let Some(notice) = Notice::decode(&message.to_bytes()) else {
                    let problem = format!("rank {rank} speaks another version of the pool");
                    return Err(self.comm.abort(&problem));
                };
                let passed_on = self.lock().hear(rank, notice);
                self.pass_on(passed_on)?;
            }
            if is_gone {
                let known = self.lock().lose(rank);
                self.pass_on(known)?;
            }
        }
        Ok(())
    }

    fn pass_on(&self, notice: Option<Notice>) -> Result<(), CommError> {
        notice.map_or(Ok(()), |notice| self.tell_all(&notice))
    }

    fn tell(&self, rank: usize, notice: &Notice) -> Result<(), CommError> {
        let message = notice.encode().into();
        self.comm.send(Rank::new(rank), TAG, message)
    }

    fn tell_all(&self, notice: &Notice) -> Result<(), CommError> {
        let own = self.comm.rank().index();
        let mut others = (0..self.comm.size()).filter(|&rank| rank != own);
        others.try_for_each(|rank| self.tell(rank, notice))
    }

    /// Listens until there is an answer.
    fn wait<T>(&self, ready: impl FnMut(&mut Seats) -> Option<T>) -> Result<T, CommError> {
        self.wait_while(ready, || Ok(()))
    }

    fn wait_while<T, E: From<CommError>>(
        &self,
        mut ready: impl FnMut(&mut Seats) -> Option<T>,
        mut meanwhile: impl FnMut() -> Result<(), E>,
    ) -> Result<T, E> {
        let mut rounds = 0;
        loop {
            self.listen()?;
            if let Some(answer) = ready(&mut self.lock()) {
                return Ok(answer);
            }
            meanwhile()?;
            pause(rounds);
            rounds += 1;
        }
    }
}

/// A rank's place in the groups of a [`RankPool`]. Whoever drops it has left, and is a spare again.
#[derive(Debug)]
pub struct PoolMember {
    id: u64,
    pool: Arc<Pool>,
    /// The group in force.
    group: Mutex<Option<Arc<dyn Communicator>>>,
}

impl PoolMember {
    /// Its number, never used again.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// How many members wait to be let in. Does not wait.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end.
    pub fn num_waiting(&self) -> Result<usize, CommError> {
        self.pool.listen()?;
        Ok(self.pool.lock().newcomers().len())
    }

    /// Ends the group in force, waits until all other members that are left of it have come here
    /// too, and returns the next group: the member of each rank, and this one's end. Members that
    /// are left keep their order, newcomers come behind them.
    ///
    /// # Errors
    ///
    /// If the ranks have come to an end; [`CommError::NoGroup`] if all members of the group that
    /// this one wants to be let into have left.
    pub fn regroup(&self) -> Result<(Vec<u64>, Arc<dyn Communicator>), CommError> {
        self.end_group("it goes on in another group");
        loop {
            let members = self.next_members()?;
            let size = self.pool.comm.size() as u64;
            let ranks: Vec<Rank> = members
                .iter()
                .map(|id| Rank::new((id % size) as usize))
                .collect();
            match self.pool.comm.subgroup(&ranks) {
                Ok(Some(group)) => {
                    *self.group() = Some(group.clone());
                    return Ok((members, group));
                }
                Ok(None) => return Err(CommError::NoGroup),
                // The group that can be made is the next one.
                Err(_) if ranks.iter().any(|&rank| self.pool.comm.is_gone(rank)) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Waits for the next group, or decides who is in it.
    fn next_members(&self) -> Result<Vec<u64>, CommError> {
        let notice = self.pool.lock().wait_for_group(self.id);
        self.pool.tell_all(&notice)?;
        let members = self.pool.wait(|seats| {
            if let Some(members) = seats.group_of(self.id) {
                return Some(Ok((members, None)));
            }
            if let Some((members, notice)) = seats.decide(self.id) {
                return Some(Ok((members, Some(notice))));
            }
            seats.is_over().then_some(Err(CommError::NoGroup))
        })?;
        let (members, decided) = members?;
        self.pool.pass_on(decided)?;
        Ok(members)
    }

    fn group(&self) -> MutexGuard<'_, Option<Arc<dyn Communicator>>> {
        self.group.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end_group(&self, message: &str) {
        if let Some(group) = self.group().take() {
            group.abort(message);
        }
    }
}

impl Drop for PoolMember {
    fn drop(&mut self) {
        self.end_group("it has left the group");
        let notice = self.pool.lock().leave(self.id);
        // An error here is one of all ranks, of which their next call tells.
        self.pool.tell_all(&notice).ok();
    }
}
