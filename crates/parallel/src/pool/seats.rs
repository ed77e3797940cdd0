//! What a rank knows of who is in.
//!
//! Notices of one rank arrive in order, those of different ranks in any. So each carries what it
//! depends on: a member waits behind a group of a certain number, and who has formed a group tells
//! which members it knows to have been in one.

use super::notice::Notice;

/// The ranks of a pool, as one of them sees them.
///
/// Members are numbered `rank + n * ranks`, for the n-th time that a rank enters.
#[derive(Debug)]
pub(super) struct Seats {
    rank: usize,
    /// Number of the last group, 0 before the first.
    number: u64,
    /// Its members; before the first group, those that are to form it.
    members: Vec<u64>,
    seats: Vec<Seat>,
    /// How often this rank has entered.
    entries: u64,
    invitations: usize,
}

/// A rank of the pool. Its members are counted, 1 above the last one's place in their row.
#[derive(Clone, Debug, Default)]
struct Seat {
    /// Members that have left.
    left: u64,
    /// Members that have been in a group.
    entered: u64,
    /// The member that waits last, and the group behind which it does.
    waits: Option<(u64, Option<u64>)>,
    /// Whether this rank has invited it, and it has not come.
    invited: bool,
}

impl Seats {
    pub(super) fn new(ranks: usize, rank: usize, first_size: usize) -> Self {
        Self {
            rank,
            number: 0,
            members: (0..first_size.clamp(1, ranks) as u64).collect(),
            seats: vec![Seat::default(); ranks],
            entries: 0,
            invitations: 0,
        }
    }

    /// The rank of a member, and which of its members it is, from 1.
    fn place(&self, member: u64) -> (usize, u64) {
        let ranks = self.seats.len() as u64;
        ((member % ranks) as usize, member / ranks + 1)
    }

    fn has_left(&self, member: u64) -> bool {
        let (rank, count) = self.place(member);
        self.seats[rank].left >= count
    }

    fn has_entered(&self, member: u64) -> bool {
        let (rank, count) = self.place(member);
        self.members.contains(&member) || self.seats[rank].entered >= count
    }

    /// Members of the last group that are left of it.
    fn present(&self) -> impl Iterator<Item = u64> {
        let members = self.members.iter().copied();
        members.filter(|&member| !self.has_left(member))
    }

    /// Members that wait to be let in, by rank.
    pub(super) fn newcomers(&self) -> Vec<u64> {
        let waits = self.seats.iter().filter_map(|seat| match seat.waits {
            Some((member, None)) => Some(member),
            _ => None,
        });
        let is_new = |member: &u64| !self.has_left(*member) && !self.has_entered(*member);
        waits.filter(is_new).collect()
    }

    /// Whether all members of the last group have left.
    pub(super) fn is_over(&self) -> bool {
        self.present().next().is_none()
    }

    /// Takes in what another rank has told.
    pub(super) fn hear(&mut self, rank: usize, notice: Notice) {
        match notice {
            Notice::Waits { member, behind } => {
                self.seats[rank].waits = Some((member, behind));
                self.seats[rank].invited = false;
            }
            Notice::Left { member } => {
                let (rank, count) = self.place(member);
                let seat = &mut self.seats[rank];
                seat.left = seat.left.max(count);
            }
            Notice::Formed {
                number,
                members,
                entered,
            } => self.formed(number, members, &entered),
            Notice::Invited => self.invitations += 1,
        }
    }

    fn formed(&mut self, number: u64, members: Vec<u64>, entered: &[u64]) {
        for (seat, &entered) in self.seats.iter_mut().zip(entered) {
            seat.entered = seat.entered.max(entered);
        }
        if number > self.number {
            self.number = number;
            self.members = members;
        }
    }

    /// This rank as a new member.
    pub(super) fn enter(&mut self) -> u64 {
        let member = self.rank as u64 + self.entries * self.seats.len() as u64;
        self.entries += 1;
        member
    }

    /// This rank's member begins to wait; what it has to tell.
    pub(super) fn wait_for_group(&mut self, member: u64) -> Notice {
        let behind = self.members.contains(&member).then_some(self.number);
        self.seats[self.rank].waits = Some((member, behind));
        Notice::Waits { member, behind }
    }

    /// This rank's member has left; what it has to tell.
    pub(super) fn leave(&mut self, member: u64) -> Notice {
        let notice = Notice::Left { member };
        self.hear(self.rank, notice.clone());
        notice
    }

    /// The group for which a member of this rank waits, once it has formed.
    pub(super) fn group_of(&self, member: u64) -> Option<Vec<u64>> {
        let (_, behind) = self.seats[self.rank].waits?;
        let is_new = self.number > behind.unwrap_or(0);
        (is_new && self.members.contains(&member)).then(|| self.members.clone())
    }

    /// Forms the next group if it is this member's part to do so, and the others that are left of
    /// the last one wait for it; what it has to tell. Nobody is let into the first group.
    pub(super) fn decide(&mut self, own: u64) -> Option<(Vec<u64>, Notice)> {
        let mut members: Vec<u64> = self.present().collect();
        let waits = |&member: &u64| {
            let (rank, _) = self.place(member);
            self.seats[rank].waits == Some((member, Some(self.number)))
        };
        if members.first() != Some(&own) || !members.iter().all(waits) {
            return None;
        }
        if self.number > 0 {
            members.extend(self.newcomers());
        }
        for &member in &members {
            let (rank, count) = self.place(member);
            let seat = &mut self.seats[rank];
            seat.entered = seat.entered.max(count);
        }
        self.number += 1;
        self.members = members.clone();
        let notice = Notice::Formed {
            number: self.number,
            members: members.clone(),
            entered: self.seats.iter().map(|seat| seat.entered).collect(),
        };
        Some((members, notice))
    }

    /// Ranks that are to be invited: those without a member, lowest first.
    pub(super) fn take_spares(&mut self, count: usize) -> Vec<usize> {
        let inside: Vec<usize> = self
            .present()
            .chain(self.newcomers())
            .map(|member| self.place(member).0)
            .collect();
        let is_spare = |&rank: &usize| !inside.contains(&rank) && !self.seats[rank].invited;
        let spares: Vec<usize> = (0..self.seats.len())
            .filter(is_spare)
            .filter(|&rank| rank != self.rank)
            .take(count)
            .collect();
        for &rank in &spares {
            self.seats[rank].invited = true;
        }
        spares
    }

    /// Uses up an invitation, if this rank has one.
    pub(super) fn take_invitation(&mut self) -> bool {
        let invited = self.invitations > 0;
        self.invitations -= usize::from(invited);
        invited
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(member: u64, behind: Option<u64>) -> Notice {
        Notice::Waits { member, behind }
    }

    #[test]
    fn the_first_that_is_left_decides_when_all_others_wait() {
        // Ranks 0, 1 and 2 are to form the first group; rank 3 waits to be let into the second.
        let mut first = Seats::new(4, 0, 3);
        let member = first.enter();
        first.wait_for_group(member);
        first.hear(3, waits(3, None));
        first.hear(1, waits(1, Some(0)));
        assert_eq!(first.decide(member), None, "rank 2 has not come");
        first.hear(2, Notice::Left { member: 2 });
        assert_eq!(first.decide(member).unwrap().0, [0, 1]);
        first.wait_for_group(member);
        first.hear(1, waits(1, Some(1)));
        let (members, notice) = first.decide(member).unwrap();
        assert_eq!(members, [0, 1, 3]);

        let mut second = Seats::new(4, 1, 3);
        let member = second.enter();
        second.wait_for_group(member);
        assert_eq!(
            (second.decide(member), second.group_of(member)),
            (None, None)
        );
        second.hear(0, notice);
        assert_eq!(second.group_of(member), Some(members));
    }

    /// Rank 3 was let in, waits again, and has left: in whatever order its neighbour hears of it.
    #[test]
    fn the_order_of_notices_of_different_ranks_does_not_matter() {
        let formed = |number, members: &[u64], entered: &[u64]| Notice::Formed {
            number,
            members: members.to_vec(),
            entered: entered.to_vec(),
        };
        let of_first = [
            formed(1, &[0, 3], &[1, 0, 0, 1]),
            formed(2, &[0], &[1, 0, 0, 1]),
        ];
        let of_last = [
            waits(3, None),
            waits(3, Some(1)),
            Notice::Left { member: 3 },
            waits(7, None),
        ];
        for order in 0..1 << 6_u32 {
            let (mut first, mut last) = (of_first.iter(), of_last.iter());
            let mut seats = Seats::new(4, 1, 1);
            for bit in 0..6 {
                let next = match order & (1 << bit) {
                    0 => first
                        .next()
                        .map(|n| (0, n))
                        .or_else(|| last.next().map(|n| (3, n))),
                    _ => last
                        .next()
                        .map(|n| (3, n))
                        .or_else(|| first.next().map(|n| (0, n))),
                };
                let (rank, notice) = next.unwrap();
                seats.hear(rank, notice.clone());
                let known = seats.newcomers();
                assert!(known.len() <= 1 && !known.contains(&2), "{known:?}");
                if seats.number == 2 {
                    assert!(!known.contains(&3), "it has been in a group: {order:b}");
                }
            }
            assert_eq!((seats.newcomers(), seats.is_over()), (vec![7], false));
        }
    }

    #[test]
    fn spares_are_those_without_a_member() {
        let mut seats = Seats::new(5, 0, 2);
        assert_eq!(seats.take_spares(1), [2]);
        seats.hear(4, waits(4, None));
        assert_eq!(seats.take_spares(9), [3]);
        assert_eq!(seats.take_spares(9), [0; 0]);
        // Rank 1 has left, and may come again.
        seats.hear(1, Notice::Left { member: 1 });
        assert_eq!(seats.take_spares(9), [1]);
        seats.hear(1, waits(6, None));
        assert_eq!(seats.newcomers(), [6, 4]);
    }
}
