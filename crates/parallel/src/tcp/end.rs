//! One end of a group: what a process knows of it, and what has come for it.

use std::collections::{HashMap, VecDeque};

use crate::Buffer;
use crate::agreement::Header;
use crate::notice::{Notice, peer_failed};
use crate::standing::{Departure, Gone, Standing, gone_error};
use crate::{CommError, MAX_TAG};

use super::frame::Kind;

/// Where a frame for a rank goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Address {
    pub(super) process: usize,
    /// What that process calls its end of the group.
    pub(super) end: u64,
}

/// A group, as one of its ranks sees it.
#[derive(Debug)]
pub(super) struct End {
    pub(super) rank: usize,
    pub(super) standing: Standing,
    /// Of each rank; those that have not joined yet cannot be reached.
    addresses: Vec<Option<Address>>,
    processes: Vec<usize>,
    /// Of each rank, its parts of collectives that this rank has not completed.
    parts: Vec<VecDeque<(Header, Buffer)>>,
    /// Messages by source and tag.
    inbox: HashMap<(usize, u32), VecDeque<Buffer>>,
    /// The ends of subgroups of these ranks that a rank has made, and this one has not.
    joins: HashMap<(Vec<usize>, usize), VecDeque<u64>>,
}

impl End {
    /// The end of a group that nobody has joined yet.
    pub(super) fn new(processes: Vec<usize>, rank: usize) -> Self {
        let size = processes.len();
        Self {
            rank,
            standing: Standing::new(rank, size),
            addresses: vec![None; size],
            processes,
            parts: vec![VecDeque::new(); size],
            inbox: HashMap::new(),
            joins: HashMap::new(),
        }
    }

    /// The process of each rank.
    pub(super) fn processes(&self) -> &[usize] {
        &self.processes
    }

    /// A rank has joined.
    pub(super) fn set_joined(&mut self, rank: usize, end: u64) {
        let process = self.processes[rank];
        self.addresses[rank] = Some(Address { process, end });
    }

    /// The other ranks that have joined, from the next one on, so that not all send to the same.
    pub(super) fn others(&self) -> Vec<(usize, Address)> {
        let size = self.processes.len();
        let others = (1..size).map(|n| (self.rank + n) % size);
        others
            .filter_map(|rank| Some((rank, self.addresses[rank]?)))
            .collect()
    }

    /// Where a message for a rank goes, if it can still be of use there.
    pub(super) fn address(&self, rank: usize) -> Option<Address> {
        self.addresses[rank].filter(|_| self.standing.gone(rank).is_none())
    }

    /// Takes in what a process has sent; an error is what is wrong with it.
    pub(super) fn take_in(
        &mut self,
        process: usize,
        kind: Kind,
        payload: Buffer,
    ) -> Result<(), String> {
        let Some(source) = self.processes.iter().position(|&p| p == process) else {
            return Err("a message from outside of the group".to_owned());
        };
        match kind {
            Kind::Message(tag) if tag <= MAX_TAG => self.put_message(source, tag, payload),
            Kind::Part => {
                let (header, rest) = payload.split_header::<Header>().ok_or("a short part")?;
                self.put_part(source, header, rest);
            }
            Kind::Notice => {
                let notice = Notice::decode(&payload.to_bytes()).ok_or("a notice")?;
                self.hear(source, notice);
            }
            Kind::Message(tag) => return Err(format!("a message with tag {tag}")),
            Kind::End => return Err("an end that is not the process's".to_owned()),
        }
        Ok(())
    }

    fn hear(&mut self, source: usize, notice: Notice) {
        match notice {
            Notice::Abort {
                completed,
                rank,
                message,
            } => self.standing.hear_failure(rank, completed, &message),
            Notice::Returned { completed, failure } => {
                let how = failure.map_or(Departure::Returned, Departure::Failed);
                self.standing.hear_gone(source, Gone { completed, how });
            }
            Notice::Join { members, end } => {
                let joins = self.joins.entry((members, source)).or_default();
                joins.push_back(end);
            }
        }
    }

    /// The process of a rank makes no further call. If it has ended without a word, what needs it
    /// fails at once, even if its part has come: others may wait for theirs in vain. Else it has
    /// completed what it has entered, or has told why not.
    pub(super) fn lose(&mut self, process: usize, how: &Departure) {
        let Some(rank) = self.processes.iter().position(|&p| p == process) else {
            return;
        };
        let completed = match how {
            Departure::Lost => 0,
            Departure::Returned | Departure::Failed(_) => {
                self.standing.completed + self.parts[rank].len() as u64
            }
        };
        let how = how.clone();
        self.standing.hear_gone(rank, Gone { completed, how });
    }

    pub(super) fn put_part(&mut self, source: usize, header: Header, part: Buffer) {
        self.parts[source].push_back((header, part));
    }

    pub(super) fn put_message(&mut self, source: usize, tag: u32, message: Buffer) {
        let queue = self.inbox.entry((source, tag)).or_default();
        queue.push_back(message);
    }

    /// The parts of the collective under way, by rank, once all are here: that completes it, also if
    /// they disagree, as all have entered it.
    pub(super) fn take_parts(&mut self) -> Option<(Vec<Header>, Vec<Buffer>)> {
        if self.parts.iter().any(VecDeque::is_empty) {
            return None;
        }
        self.standing.completed += 1;
        let parts = self.parts.iter_mut().filter_map(VecDeque::pop_front);
        Some(parts.unzip())
    }

    pub(super) fn take_message(&mut self, from: usize, tag: u32) -> Option<Buffer> {
        let queue = self.inbox.get_mut(&(from, tag))?;
        let message = queue.pop_front();
        if queue.is_empty() {
            self.inbox.remove(&(from, tag));
        }
        message
    }

    /// Ends the group in the name of this rank; what the others are to hear, if it had not ended.
    pub(super) fn abort(&mut self, message: &str) -> (CommError, Option<Notice>) {
        let notice = self.standing.failure().is_none().then(|| Notice::Abort {
            completed: self.standing.completed,
            rank: self.rank,
            message: message.to_owned(),
        });
        let error = self.standing.fail(peer_failed(self.rank, message));
        (error, notice)
    }

    /// What the members other than this one call their ends of a subgroup, by member, once all
    /// have joined; an error if one of them never will.
    pub(super) fn take_joins(&mut self, members: &[usize]) -> Option<Result<Vec<u64>, CommError>> {
        let key = |member: usize| (members.to_vec(), member);
        let others = members.iter().copied().filter(|&m| m != self.rank);
        let others: Vec<usize> = others.collect();
        let missing = others.iter().find(|&&m| !self.joins.contains_key(&key(m)));
        if let Some(&missing) = missing {
            let gone = self.standing.gone(missing)?;
            let error = gone_error(missing, &gone.how, "subgroup".to_owned());
            return Some(Err(error));
        }
        let mut ends = Vec::with_capacity(others.len());
        for member in others {
            let joins = self.joins.get_mut(&key(member))?;
            ends.push(joins.pop_front()?);
            if joins.is_empty() {
                self.joins.remove(&key(member));
            }
        }
        Some(Ok(ends))
    }
}
