//! Groups made of the ranks of a group.

use std::sync::{Arc, Weak};

use super::communicator::Shared;

/// The subgroups of a group, and the ranks that are gone for all that are yet to be made.
#[derive(Debug, Default)]
pub(super) struct Subgroups {
    /// Those that a member has yet to join, oldest first.
    open: Vec<Open>,
    made: Vec<(Vec<usize>, Weak<Shared>)>,
    /// Ranks that make no further call, with the message of those that failed.
    ended: Vec<(usize, Option<String>)>,
}

#[derive(Debug)]
struct Open {
    members: Vec<usize>,
    joined: Vec<bool>,
    shared: Arc<Shared>,
}

impl Subgroups {
    /// The oldest group of these members that the one at `position` has not joined yet, or a new
    /// one. A member that is gone is gone in the new group too.
    pub(super) fn join(&mut self, members: Vec<usize>, position: usize) -> Arc<Shared> {
        let found = self
            .open
            .iter()
            .position(|group| group.members == members && !group.joined[position]);
        let index = found.unwrap_or_else(|| {
            let made = self.make(members);
            self.open.push(made);
            self.open.len() - 1
        });
        let group = &mut self.open[index];
        group.joined[position] = true;
        let shared = Arc::clone(&group.shared);
        self.close_complete();
        shared
    }

    /// Forgets the groups that every member has joined that still can.
    fn close_complete(&mut self) {
        let ended = &self.ended;
        self.open.retain(|group| {
            let mut members = group.members.iter().zip(&group.joined);
            members.any(|(member, joined)| !joined && ended.iter().all(|(rank, _)| rank != member))
        });
    }

    fn make(&mut self, members: Vec<usize>) -> Open {
        let shared = Arc::new(Shared::new(members.len()));
        for (rank, failure) in &self.ended {
            if let Some(position) = members.iter().position(|member| member == rank) {
                shared.end_rank(position, failure.as_deref());
            }
        }
        self.made.retain(|(_, made)| made.strong_count() > 0);
        self.made.push((members.clone(), Arc::downgrade(&shared)));
        Open {
            joined: vec![false; members.len()],
            members,
            shared,
        }
    }

    /// Ends a rank of the group in all subgroups that have it.
    pub(super) fn end_rank(&mut self, rank: usize, failure: Option<&str>) {
        self.ended.push((rank, failure.map(str::to_owned)));
        for (members, made) in &self.made {
            let position = members.iter().position(|&member| member == rank);
            if let (Some(position), Some(shared)) = (position, made.upgrade()) {
                shared.end_rank(position, failure);
            }
        }
        self.close_complete();
    }
}
