//! What the ranks of a thread group know together, under one lock.

use std::collections::{HashMap, VecDeque};

use moekit_routing::Rank;

use crate::call::{Call, Collective};
use crate::reduce::reduce_in_rank_order;
use crate::{Buffer, CommError};

/// The shared state of a group.
#[derive(Debug)]
pub(super) struct State {
    members: Vec<Member>,
    failure: Option<CommError>,
}

/// One rank, as the others see it.
#[derive(Debug, Default)]
struct Member {
    /// Its function has returned; it makes no further call.
    returned: bool,
    /// The call in which it waits.
    waiting: Option<Call>,
    /// What it gives to the collective that is being assembled.
    contribution: Option<(Collective, Vec<Buffer>)>,
    /// What it gets from the collective that is complete.
    outcome: Option<Vec<Buffer>>,
    /// Messages that wait for it, by sender and tag.
    inbox: HashMap<(usize, u32), VecDeque<Buffer>>,
}

impl State {
    pub(super) fn new(size: usize) -> Self {
        Self {
            members: (0..size).map(|_| Member::default()).collect(),
            failure: None,
        }
    }

    pub(super) fn failure(&self) -> Option<&CommError> {
        self.failure.as_ref()
    }

    /// Ends the group, unless it has ended already. Returns the error that ended it.
    pub(super) fn fail(&mut self, error: CommError) -> CommError {
        self.failure.get_or_insert(error).clone()
    }

    /// Notes that `rank` makes no further call.
    pub(super) fn set_returned(&mut self, rank: usize) {
        let member = &mut self.members[rank];
        member.returned = true;
        member.inbox.clear();
    }

    pub(super) fn has_returned(&self, rank: usize) -> bool {
        self.members.get(rank).is_some_and(|member| member.returned)
    }

    /// Refuses a call of a rank that has returned, or that is in another call already.
    pub(super) fn admit(&self, rank: usize, call: Call) -> Result<(), CommError> {
        let member = &self.members[rank];
        if member.returned {
            return Err(returned(rank, call));
        }
        match member.waiting {
            None => Ok(()),
            Some(other) => Err(CommError::Concurrent {
                rank: Rank::new(rank),
                call: call.to_string(),
                other_call: other.to_string(),
            }),
        }
    }

    pub(super) fn set_waiting(&mut self, rank: usize, call: Option<Call>) {
        self.members[rank].waiting = call;
    }

    /// Leaves a message for `to`; a rank that has returned will never read it.
    pub(super) fn post(&mut self, from: usize, to: usize, tag: u32, message: Buffer) {
        let member = &mut self.members[to];
        if !member.returned {
            let queue = member.inbox.entry((from, tag)).or_default();
            queue.push_back(message);
        }
    }

    pub(super) fn take_message(&mut self, rank: usize, from: usize, tag: u32) -> Option<Buffer> {
        let inbox = &mut self.members[rank].inbox;
        let queue = inbox.get_mut(&(from, tag))?;
        let message = queue.pop_front();
        if queue.is_empty() {
            inbox.remove(&(from, tag));
        }
        message
    }

    /// Adds a rank's part to the collective. The last to come completes it for all, which is
    /// `true`.
    pub(super) fn contribute(
        &mut self,
        rank: usize,
        collective: Collective,
        parts: Vec<Buffer>,
    ) -> Result<bool, CommError> {
        self.members[rank].contribution = Some((collective, parts));
        if self.members.iter().any(|m| m.contribution.is_none()) {
            return Ok(false);
        }
        let contributions = self
            .members
            .iter_mut()
            .filter_map(|m| m.contribution.take());
        let (collectives, parts): (Vec<_>, Vec<_>) = contributions.unzip();
        let outcomes = complete(agreed(&collectives)?, parts)?;
        for (member, outcome) in self.members.iter_mut().zip(outcomes) {
            member.outcome = Some(outcome);
        }
        Ok(true)
    }

    pub(super) fn take_outcome(&mut self, rank: usize) -> Option<Vec<Buffer>> {
        self.members[rank].outcome.take()
    }

    /// Why the call in which `rank` is about to wait can never end, if so.
    pub(super) fn hopeless(&self, rank: usize, call: Call) -> Option<CommError> {
        let gone = self
            .needs(rank)
            .into_iter()
            .find(|&peer| self.members[peer].returned);
        if let Some(peer) = gone {
            return Some(returned(peer, call));
        }
        let waits: Vec<String> = self
            .circle(rank)?
            .into_iter()
            .filter_map(|peer| {
                Some(format!(
                    "rank {peer} waits in {}",
                    self.members[peer].waiting?
                ))
            })
            .collect();
        Some(CommError::Deadlock {
            waits: waits.join(", "),
        })
    }

    /// The ranks that must all act before the call in which `rank` waits can end.
    fn needs(&self, rank: usize) -> Vec<usize> {
        let member = &self.members[rank];
        match member.waiting {
            Some(Call::Recv { from, tag }) if !member.inbox.contains_key(&(from, tag)) => {
                vec![from]
            }
            Some(Call::Collective(_)) if member.outcome.is_none() => (0..self.members.len())
                .filter(|&peer| self.members[peer].contribution.is_none())
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A shortest circle of ranks, each of which needs the next, that starts and ends at `start`.
    ///
    /// A wait ends only when *all* that it needs have acted, and a rank makes one call at a time,
    /// so a circle never opens again. It can only come about when a rank begins to wait, and that
    /// rank is part of it.
    fn circle(&self, start: usize) -> Option<Vec<usize>> {
        let mut reached_from = vec![None; self.members.len()];
        let mut queue = VecDeque::from([start]);
        while let Some(rank) = queue.pop_front() {
            for next in self.needs(rank) {
                if next == start {
                    let back = std::iter::successors(Some(rank), |&r| reached_from[r]);
                    let mut circle: Vec<usize> = back.collect();
                    circle.reverse();
                    return Some(circle);
                }
                if reached_from[next].is_none() {
                    reached_from[next] = Some(rank);
                    queue.push_back(next);
                }
            }
        }
        None
    }
}

fn returned(rank: usize, call: Call) -> CommError {
    CommError::PeerReturned {
        rank: Rank::new(rank),
        call: call.to_string(),
    }
}

/// The collective that all ranks called, or the first two that called different ones.
fn agreed(collectives: &[Collective]) -> Result<Collective, CommError> {
    let first = collectives.first().copied().unwrap_or(Collective::Barrier);
    match collectives.iter().position(|&other| other != first) {
        None => Ok(first),
        Some(rank) => Err(CommError::Mismatch {
            rank: Rank::new(0),
            call: first.to_string(),
            other_rank: Rank::new(rank),
            other_call: collectives[rank].to_string(),
        }),
    }
}

/// What each rank gets, from what each rank gave.
fn complete(
    collective: Collective,
    parts: Vec<Vec<Buffer>>,
) -> Result<Vec<Vec<Buffer>>, CommError> {
    let size = parts.len();
    Ok(match collective {
        Collective::Barrier => vec![Vec::new(); size],
        Collective::AllGatherV => vec![parts.concat(); size],
        Collective::AllToAllV => {
            let mut senders: Vec<_> = parts.into_iter().map(Vec::into_iter).collect();
            (0..size)
                .map(|_| senders.iter_mut().filter_map(Iterator::next).collect())
                .collect()
        }
        Collective::AllReduce { op, element, .. } => {
            let reduced = reduce_in_rank_order(parts.concat(), element, op)?;
            vec![vec![reduced]; size]
        }
    })
}
