//! What a process knows of its groups, and what it does whenever one of its ranks waits.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::c_int;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::sys::{Comm, Mpi, Operation};
use crate::notice::{Notice, peer_failed};
use crate::standing::{Departure, Gone, Standing, gone_error};
use crate::{Buffer, CommError, MAX_TAG};

/// The tag of notices, behind those of messages.
const NOTICE_TAG: u32 = MAX_TAG + 1;

/// This process, as all of its communicators see it.
#[derive(Debug)]
pub(super) struct Process {
    state: Mutex<State>,
    /// Held while a group is made: one at a time, as its members wait for each other.
    pub(super) making_group: Mutex<()>,
}

impl Process {
    pub(super) fn new(mpi: Mpi) -> Self {
        Self {
            state: Mutex::new(State {
                mpi,
                groups: BTreeMap::new(),
                next_id: 0,
            }),
            making_group: Mutex::default(),
        }
    }

    /// Whoever panics while MPI is locked has left the state whole: nothing is half done there.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The groups of this process and the leave to call MPI.
#[derive(Debug)]
pub(super) struct State {
    pub(super) mpi: Mpi,
    /// A group leaves the map when no rank of it makes any further call.
    pub(super) groups: BTreeMap<u64, Group>,
    next_id: u64,
}

impl State {
    /// Makes a group; waits for all of its ranks to come here.
    pub(super) fn make_group(&mut self, world_ranks: &[usize], rank: usize) -> Option<u64> {
        let raw: Vec<c_int> = world_ranks
            .iter()
            .map(|&r| c_int::try_from(r).ok())
            .collect::<Option<_>>()?;
        let comm = self.mpi.create_group(&raw)?;
        let id = self.next_id;
        self.next_id += 1;
        self.groups
            .insert(id, Group::new(comm, world_ranks.to_vec(), rank));
        Some(id)
    }

    /// Takes in what has come for any group.
    pub(super) fn listen(&mut self) {
        for group in self.groups.values_mut() {
            group.progress(&mut self.mpi);
        }
    }

    /// Takes in what has come, tells of communicators that were dropped, and lets go of what is
    /// done.
    pub(super) fn progress(&mut self) {
        self.listen();
        let mpi = &mut self.mpi;
        for group in self.groups.values_mut() {
            if group.dropped && !group.has_returned {
                group.return_rank(mpi, None);
            }
        }
        let done: Vec<u64> = self
            .groups
            .iter()
            .filter(|(_, group)| group.is_done())
            .map(|(&id, _)| id)
            .collect();
        for id in done {
            if let Some(group) = self.groups.remove(&id)
                && !group.spoiled
            {
                group.comm.free(mpi);
            }
        }
    }

    /// Whether another process has failed, as far as any group knows.
    pub(super) fn has_failed_peer(&self) -> bool {
        let mut gone = self
            .groups
            .values()
            .flat_map(|group| group.standing.all_gone());
        gone.any(|(_, gone)| matches!(gone.how, Departure::Failed(_)))
    }

    /// Tells the ranks of all groups but `world` that this process has failed.
    pub(super) fn return_subgroups(&mut self, world: u64, message: &str) {
        let subgroups = self.groups.iter_mut().filter(|(id, _)| **id != world);
        for (_, group) in subgroups.filter(|(_, group)| !group.has_returned) {
            group.return_rank(&mut self.mpi, Some(message));
        }
    }

    /// Tells all ranks of all groups that this process makes no further call, and why if it failed.
    pub(super) fn return_rank(&mut self, failure: Option<&str>) {
        for group in self.groups.values_mut() {
            if !group.has_returned {
                group.return_rank(&mut self.mpi, failure);
            }
        }
    }
}

/// One group, as one of its ranks sees it.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) comm: Comm,
    /// The rank in `MPI_COMM_WORLD` of each rank.
    pub(super) world_ranks: Vec<usize>,
    pub(super) rank: usize,
    pub(super) standing: Standing,
    /// Whether this rank makes no further call.
    pub(super) has_returned: bool,
    /// Whether the communicator of this rank has been dropped.
    pub(super) dropped: bool,
    /// Whether an operation was given up: MPI may still use the communicator.
    pub(super) spoiled: bool,
    /// Messages by source and tag.
    inbox: HashMap<(usize, u32), VecDeque<Message>>,
    notices: VecDeque<(usize, Operation)>,
    sends: Vec<Operation>,
    /// How often a rank has come to a subgroup of these ranks.
    joins: HashMap<(Vec<usize>, usize), usize>,
}

#[derive(Debug)]
enum Message {
    /// Of this rank to itself.
    Here(Buffer),
    Coming(Operation),
}

impl Group {
    fn new(comm: Comm, world_ranks: Vec<usize>, rank: usize) -> Self {
        Self {
            comm,
            rank,
            standing: Standing::new(rank, world_ranks.len()),
            has_returned: false,
            dropped: false,
            spoiled: false,
            inbox: HashMap::new(),
            notices: VecDeque::new(),
            sends: Vec::new(),
            joins: HashMap::new(),
            world_ranks,
        }
    }

    fn progress(&mut self, mpi: &mut Mpi) {
        while let Some(arrival) = self.comm.next_arrival(mpi) {
            if arrival.tag == NOTICE_TAG {
                self.notices.push_back((arrival.source, arrival.operation));
            } else {
                let key = (arrival.source, arrival.tag);
                let message = Message::Coming(arrival.operation);
                self.inbox.entry(key).or_default().push_back(message);
            }
        }
        while let Some((source, operation)) = self.notices.front_mut() {
            if !operation.is_complete(mpi) {
                break;
            }
            let source = *source;
            if let Some((_, operation)) = self.notices.pop_front() {
                self.hear(source, &operation.into_received().to_bytes());
            }
        }
        self.sends.retain_mut(|send| !send.is_complete(mpi));
        if self.has_returned {
            // Nobody will read them, but their senders wait for them to be taken.
            self.inbox.retain(|_, queue| {
                queue.retain_mut(|message| match message {
                    Message::Here(_) => false,
                    Message::Coming(operation) => !operation.is_complete(mpi),
                });
                !queue.is_empty()
            });
        }
    }

    /// Whether all ranks have returned in peace and all that was sent has arrived.
    fn is_done(&self) -> bool {
        let in_peace = |rank: usize| {
            let gone = self.standing.gone(rank);
            gone.is_some_and(|gone| gone.how == Departure::Returned)
        };
        self.has_returned
            && (0..self.world_ranks.len()).all(in_peace)
            && self.sends.is_empty()
            && self.notices.is_empty()
            && self.inbox.is_empty()
    }

    fn hear(&mut self, source: usize, bytes: &[u8]) {
        match Notice::decode(bytes) {
            Some(Notice::Abort {
                completed,
                rank,
                message,
            }) => self.standing.hear_failure(rank, completed, &message),
            Some(Notice::Returned { completed, failure }) => {
                let how = failure.map_or(Departure::Returned, Departure::Failed);
                self.standing.hear_gone(source, Gone { completed, how });
            }
            Some(Notice::Join { members, .. }) => {
                *self.joins.entry((members, source)).or_default() += 1;
            }
            None => {
                let problem = "its notice cannot be read: is it another version?";
                let completed = self.standing.completed;
                self.standing.hear_failure(source, completed, problem);
            }
        }
    }

    fn tell(&mut self, mpi: &mut Mpi, peers: &[usize], notice: &Notice) {
        let bytes = bytes::Bytes::from(notice.encode());
        for &peer in peers.iter().filter(|&&peer| peer != self.rank) {
            let send = self.comm.send(mpi, peer, NOTICE_TAG, bytes.clone());
            self.sends.push(send);
        }
    }

    fn tell_all(&mut self, mpi: &mut Mpi, notice: &Notice) {
        let all: Vec<usize> = (0..self.world_ranks.len()).collect();
        self.tell(mpi, &all, notice);
    }

    fn return_rank(&mut self, mpi: &mut Mpi, failure: Option<&str>) {
        let how = failure.map_or(Departure::Returned, |message| {
            Departure::Failed(message.to_owned())
        });
        for notice in self.standing.last_words(how.clone()) {
            self.tell_all(mpi, &notice);
        }
        let completed = self.standing.completed;
        self.standing.hear_gone(self.rank, Gone { completed, how });
        self.has_returned = true;
    }

    /// Ends the group in the name of this rank on all ranks, unless it has ended.
    pub(super) fn abort(&mut self, mpi: &mut Mpi, message: &str) -> CommError {
        if self.standing.failure().is_none() && !self.has_returned {
            let notice = Notice::Abort {
                completed: self.standing.completed,
                rank: self.rank,
                message: message.to_owned(),
            };
            self.tell_all(mpi, &notice);
        }
        self.standing.fail(peer_failed(self.rank, message))
    }

    pub(super) fn send(&mut self, mpi: &mut Mpi, to: usize, tag: u32, message: Buffer) {
        if to == self.rank {
            let queue = self.inbox.entry((to, tag)).or_default();
            queue.push_back(Message::Here(message));
            return;
        }
        let send = self.comm.send(mpi, to, tag, message.to_bytes());
        self.sends.push(send);
    }

    /// The next message, once all of it is here.
    pub(super) fn take_message(&mut self, mpi: &mut Mpi, from: usize, tag: u32) -> Option<Buffer> {
        let queue = self.inbox.get_mut(&(from, tag))?;
        if let Some(Message::Coming(operation)) = queue.front_mut()
            && !operation.is_complete(mpi)
        {
            return None;
        }
        let message = queue.pop_front();
        if queue.is_empty() {
            self.inbox.remove(&(from, tag));
        }
        message.map(|message| match message {
            Message::Here(buffer) => buffer,
            Message::Coming(operation) => operation.into_received(),
        })
    }

    /// Why no message of that rank with that tag can come, if so; notices of a rank come behind
    /// its messages.
    pub(super) fn no_message(&self, from: usize, tag: u32) -> Option<CommError> {
        if self.inbox.contains_key(&(from, tag)) {
            return None;
        }
        self.standing.no_message(from, tag)
    }

    /// Tells the other members that this rank has come to make a subgroup.
    pub(super) fn join(&mut self, mpi: &mut Mpi, members: &[usize]) {
        let notice = Notice::Join {
            members: members.to_vec(),
            // MPI finds the ends of a group by itself.
            end: 0,
        };
        self.tell(mpi, members, &notice);
    }

    /// Whether all members have come to make a subgroup; an error if one of them never will.
    pub(super) fn all_joined(&mut self, members: &[usize]) -> Result<bool, CommError> {
        let mut others = members.iter().filter(|&&m| m != self.rank);
        let key = |member: usize| (members.to_vec(), member);
        if let Some(&missing) = others.find(|&&m| !self.joins.contains_key(&key(m))) {
            return match self.standing.gone(missing) {
                None => Ok(false),
                Some(gone) => Err(gone_error(missing, &gone.how, "subgroup".to_owned())),
            };
        }
        for &member in members.iter().filter(|&&m| m != self.rank) {
            if let Some(count) = self.joins.get_mut(&key(member)) {
                *count -= 1;
                if *count == 0 {
                    self.joins.remove(&key(member));
                }
            }
        }
        Ok(true)
    }
}
