//! Moves that turn out not to be needed.

use crate::exchange::Exchanges;
use crate::layout::Layout;
use crate::replan::{Held, Kind};

/// Takes swaps and exchanges back as long as fewer experts travel then and no rank gets above the limit: slot
/// after slot the one that saves most.
///
/// Time: O(s P) for s slots per rank for each expert that travels, a few times.
pub(crate) fn undo(layout: &mut Layout<'_>, held: &Held, limit: f64) {
    let mut changed = true;
    while std::mem::take(&mut changed) {
        for rank in layout.ranks.live() {
            for slot in layout.ranks.slots(rank) {
                let arrival = Arrival {
                    layout,
                    held,
                    limit,
                    rank,
                    slot,
                };
                if held.arrives(rank, layout.expert(slot)) > 0
                    && let Some(kind) = arrival.best_undo()
                {
                    kind.apply(layout);
                    changed = true;
                }
            }
        }
    }
}

/// A slot whose expert travels to the slot's rank.
struct Arrival<'a> {
    layout: &'a Layout<'a>,
    held: &'a Held,
    limit: f64,
    rank: usize,
    slot: usize,
}

impl Arrival<'_> {
    /// What saves most of what the slot gives cause for: a swap saves one expert or two, an exchange one.
    fn best_undo(&self) -> Option<Kind> {
        let &Self {
            layout, rank, slot, ..
        } = self;
        let swap = self.swap_back();
        if swap.is_some() || layout.count(layout.expert(slot)) == 1 {
            return swap;
        }
        let exchanges = Exchanges::of(layout, self.limit);
        let fits = |&back: &u32| {
            exchanges.can_take(rank, back) && exchanges.change(slot, rank, back) <= 0.0
        };
        let back = self.held.of_rank(rank).iter().copied().find(fits)?;
        Some(Kind::Replace(slot, back))
    }

    /// The swap of the slot that saves most, if one does.
    fn swap_back(&self) -> Option<Kind> {
        let &Self {
            layout,
            held,
            limit,
            rank,
            slot,
        } = self;
        let ranks = layout.ranks;
        let mine = layout.expert(slot);
        let (mut best, mut most) = (None, 0);
        for other in ranks.live() {
            if other == rank || layout.holds(other, mine) {
                continue;
            }
            for theirs in ranks.slots(other) {
                let expert = layout.expert(theirs);
                let saved = 1 - held.arrives(other, mine) + held.arrives(other, expert)
                    - held.arrives(rank, expert);
                let load = layout.share_of(slot) - layout.share_of(theirs);
                let after = layout.times()[rank] - load * ranks.pace(rank);
                let there = layout.times()[other] + load * ranks.pace(other);
                if saved > most && after.max(there) <= limit && !layout.holds(rank, expert) {
                    (best, most) = (Some(Kind::Swap(slot, theirs)), saved);
                }
            }
        }
        best
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::{Placement, Topology};

    use super::*;
    use crate::ranks::Ranks;

    #[test]
    fn what_is_not_needed_stays() {
        let topology = Topology::new(3).unwrap();
        let ranks = Ranks::new(&[3; 3], &topology, &[]);
        let before = vec![0, 1, 2, 3, 4, 5, 0, 6, 7];
        let current = Placement::new(8, before.clone(), vec![0, 3, 6, 9]).unwrap();
        let held = Held::of(&current, &ranks);
        let weights = [6.0, 2.0, 1.0, 3.0, 1.0, 1.0, 2.0, 1.0];
        // 1 and 4 changed places, and 7 came for 5.
        let slots = vec![0, 4, 2, 3, 1, 7, 0, 6, 5];
        let undone = |limit: f64| {
            let mut layout = Layout::new(&ranks, &weights, slots.clone());
            undo(&mut layout, &held, limit);
            (held.arrivals(&layout), layout.largest())
        };
        assert_eq!(undone(6.0), (0, 6.0));
        // The first rank would carry 6 again.
        assert_eq!(undone(5.9), (4, 6.0));
        let mut extra = Layout::new(&ranks, &weights, vec![0, 1, 2, 3, 0, 5, 4, 6, 7]);
        undo(&mut extra, &held, 9.0);
        assert_eq!(held.arrivals(&extra), 0);
    }
}
