//! What a rank knows of who is in.
//!
//! Notices of one rank arrive in order, those of different ranks in any. So each carries what it
//! depends on: a member waits behind a group of a certain number, and who has formed a group tells
//! which members it knows to have been in one.
//!
//! A rank may go without a word, and may have told some of the others what it has not told the
//! rest. So whoever hears of a group passes that on, and then says that it knows of the rank that is
//! gone; nobody forms a group before all that are left have said so. Then no group is unknown to the
//! one that forms the next.

use std::collections::BTreeSet;

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
    /// Ranks that were invited and are gone.
    lost_guests: usize,
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
    /// Whether it makes no further call.
    gone: bool,
    /// The ranks of which it has told that they are gone.
    knows_gone: BTreeSet<usize>,
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
            lost_guests: 0,
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

    /// Takes in what another rank has told; what all others are to hear of it.
    pub(super) fn hear(&mut self, rank: usize, notice: Notice) -> Option<Notice> {
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
            } => return self.formed(number, members, entered),
            Notice::Invited => self.invitations += 1,
            Notice::Gone { rank: gone } => {
                let known = usize::try_from(gone).ok();
                self.seats[rank].knows_gone.extend(known);
            }
        }
        None
    }

    fn formed(&mut self, number: u64, members: Vec<u64>, entered: Vec<u64>) -> Option<Notice> {
        for (seat, &entered) in self.seats.iter_mut().zip(&entered) {
            seat.entered = seat.entered.max(entered);
        }
        if number <= self.number {
            return None;
        }
        self.number = number;
        self.members.clone_from(&members);
        Some(Notice::Formed {
            number,
            members,
            entered,
        })
    }

    /// A rank makes no further call, and what it has told has been heard; what all others are to
    /// hear.
    pub(super) fn lose(&mut self, rank: usize) -> Option<Notice> {
        let seat = &mut self.seats[rank];
        if seat.gone {
            return None;
        }
        seat.gone = true;
        // All that it ever was, or could have been, has left.
        seat.left = u64::MAX;
        self.lost_guests += usize::from(seat.invited);
        let notice = Notice::Gone { rank: rank as u64 };
        self.hear(self.rank, notice.clone());
        Some(notice)
    }

    /// Whether all ranks that are left know which are gone.
    fn all_know_who_is_gone(&self) -> bool {
        let gone = &self.seats[self.rank].knows_gone;
        let mut left = self.seats.iter().filter(|seat| !seat.gone);
        left.all(|seat| seat.knows_gone.is_superset(gone))
    }

    /// Whether so many members wait to be let in, or as many as can of those that were invited.
    pub(super) fn have_come(&mut self, count: usize) -> bool {
        let have = self.newcomers().len() + self.lost_guests >= count;
        if have {
            self.lost_guests = 0;
        }
        have
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
        if members.first() != Some(&own)
            || !members.iter().all(waits)
            || !self.all_know_who_is_gone()
        {
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
        let is_spare = |&rank: &usize| {
            let seat = &self.seats[rank];
            !inside.contains(&rank) && !seat.invited && !seat.gone
        };
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

    /// Rank 0 has formed a group and told rank 2 alone of it before it was lost.
    #[test]
    fn what_a_lost_rank_has_told_one_is_known_to_all_before_the_next_group() {
        let mut lost = Seats::new(4, 0, 3);
        let mut first = Seats::new(4, 1, 3);
        let mut second = Seats::new(4, 2, 3);
        for (rank, seats) in [&mut lost, &mut first, &mut second].into_iter().enumerate() {
            assert_eq!(seats.enter(), rank as u64);
            seats.wait_for_group(rank as u64);
            for other in (0..3).filter(|&other| other != rank) {
                seats.hear(other, waits(other as u64, Some(0)));
            }
        }
        let (_, formed) = lost.decide(0).unwrap();
        let passed_on = second.hear(0, formed.clone()).unwrap();
        assert_eq!(passed_on, formed);
        assert_eq!(second.hear(1, formed.clone()), None, "once");
        let gone = Notice::Gone { rank: 0 };
        assert_eq!(first.lose(0), Some(gone.clone()));
        assert_eq!(first.lose(0), None, "once");
        // It would be the first to decide, and all others wait, but do not all know.
        assert_eq!(first.decide(1), None);
        first.hear(3, gone.clone());
        assert_eq!(first.decide(1), None, "rank 2 may know of a group");
        first.hear(2, passed_on);
        first.hear(2, second.lose(0).unwrap());
        assert_eq!(first.group_of(1), Some(vec![0, 1, 2]));
        // That group cannot be made any more, so both wait for the one behind it.
        assert_eq!(first.wait_for_group(1), waits(1, Some(1)));
        assert_eq!(first.decide(1), None);
        first.hear(2, second.wait_for_group(2));
        let (members, formed) = first.decide(1).unwrap();
        assert_eq!(members, [1, 2]);
        second.hear(1, formed);
        assert_eq!(second.group_of(2), Some(members));
    }

    #[test]
    fn ranks_that_are_gone_are_not_waited_for() {
        let mut seats = Seats::new(4, 0, 1);
        let member = seats.enter();
        seats.wait_for_group(member);
        seats.decide(member).unwrap();
        assert_eq!(seats.take_spares(2), [1, 2]);
        seats.lose(2);
        assert!(!seats.have_come(2), "rank 1 may come");
        seats.hear(1, waits(1, None));
        assert!(seats.have_come(2) && !seats.have_come(2));
        assert_eq!(seats.take_spares(9), [3]);
        seats.lose(1);
        assert_eq!(seats.newcomers(), [0; 0]);
        assert!(!seats.is_over());
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
