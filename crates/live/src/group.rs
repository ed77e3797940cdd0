use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use moekit_parallel::{CommError, Communicator, PoolMember, ThreadMember};

/// A group of members: the ranks of an EP group as long as nobody comes or goes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Group {
    /// This rank's end.
    pub comm: Arc<dyn Communicator>,
    /// The member of each rank.
    pub members: Vec<u64>,
}

impl Group {
    /// A group.
    pub fn new(comm: Arc<dyn Communicator>, members: Vec<u64>) -> Self {
        Self { comm, members }
    }
}

/// One member's way from group to group.
///
/// A member is a process or thread with a number that stays its own; its rank changes from group to
/// group. Dropping a membership leaves the group for good.
pub trait Membership: Debug + Send + Sync {
    /// This member's number.
    fn member(&self) -> u64;

    /// Members that wait to be let in. Does not wait itself.
    fn num_waiting(&self) -> usize;

    /// Ends the group in force and enters the next one, with all of the last group that are left
    /// and all that wait to be let in. Members that are left keep their order; newcomers come
    /// behind them. Waits for members that are left, never for one that is gone.
    ///
    /// # Errors
    ///
    /// If there can be no other group.
    fn next_group(&self) -> Result<Group, CommError>;
}

impl Membership for ThreadMember {
    fn member(&self) -> u64 {
        self.id()
    }

    fn num_waiting(&self) -> usize {
        ThreadMember::num_waiting(self)
    }

    fn next_group(&self) -> Result<Group, CommError> {
        let (members, comm) = self.regroup()?;
        Ok(Group::new(Arc::new(comm), members))
    }
}

/// Groups among ranks that are there from the beginning, as processes of an MPI job are: the others
/// wait as spares.
impl Membership for PoolMember {
    fn member(&self) -> u64 {
        self.id()
    }

    fn num_waiting(&self) -> usize {
        // If the ranks have come to an end, the next exchange tells.
        PoolMember::num_waiting(self).unwrap_or(0)
    }

    fn next_group(&self) -> Result<Group, CommError> {
        let (members, comm) = self.regroup()?;
        Ok(Group::new(comm, members))
    }
}

/// The membership of a group that never changes, over a communicator without subgroups: rebalancing
/// works, elasticity does not.
#[derive(Debug)]
pub struct FixedGroup {
    comm: Arc<dyn Communicator>,
    taken: AtomicBool,
}

impl FixedGroup {
    /// The ranks of a communicator.
    pub fn new(comm: Arc<dyn Communicator>) -> Self {
        Self {
            comm,
            taken: AtomicBool::new(false),
        }
    }
}

impl Membership for FixedGroup {
    fn member(&self) -> u64 {
        self.comm.rank().index() as u64
    }

    fn num_waiting(&self) -> usize {
        0
    }

    fn next_group(&self) -> Result<Group, CommError> {
        if self.taken.swap(true, Ordering::Relaxed) {
            return Err(CommError::PeerFailed {
                rank: self.comm.rank(),
                message: "the ranks of this transport are fixed: there is no next group".to_owned(),
            });
        }
        let members = (0..self.comm.size() as u64).collect();
        Ok(Group::new(self.comm.clone(), members))
    }
}
