//! A placement of one layer while it is searched.

use crate::lanes::fold_lanes;
use crate::ranks::Ranks;

/// In place of an expert: nothing sits in the slot yet.
pub(crate) const EMPTY: u32 = u32::MAX;

/// More than the rounding error of a time, as a part of it.
pub(crate) const ROUNDING: f64 = 1e-12;

/// What sits in each slot, and the sums that follow.
#[derive(Clone, Debug)]
pub(crate) struct Layout<'a> {
    pub(crate) ranks: &'a Ranks,
    /// Load of each expert, `[E]`.
    pub(crate) weights: &'a [f64],
    slots: Vec<u32>,
    /// The load of each slot, `[P]`.
    shares: Vec<f64>,
    /// Replicas of each expert, `[E]`.
    counts: Vec<u32>,
    /// Load over speed, `[R]`.
    times: Vec<f64>,
}

impl<'a> Layout<'a> {
    /// # Arguments
    ///
    /// - `slots` - the expert of each slot, or [`EMPTY`], `[P]`.
    pub(crate) fn new(ranks: &'a Ranks, weights: &'a [f64], slots: Vec<u32>) -> Self {
        let mut counts = vec![0; weights.len()];
        for &expert in slots.iter().filter(|&&e| e != EMPTY) {
            counts[expert as usize] += 1;
        }
        let share = |&e: &u32| match e {
            EMPTY => 0.0,
            e => weights[e as usize] / f64::from(counts[e as usize]),
        };
        let mut layout = Self {
            ranks,
            weights,
            shares: slots.iter().map(share).collect(),
            slots,
            counts,
            times: vec![0.0; ranks.len()],
        };
        for rank in 0..ranks.len() {
            layout.refresh(rank);
        }
        layout
    }

    pub(crate) fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub(crate) fn into_slots(self) -> Vec<u32> {
        self.slots
    }

    /// The expert in a slot.
    pub(crate) fn expert(&self, slot: usize) -> u32 {
        self.slots[slot]
    }

    pub(crate) fn experts_of(&self, rank: usize) -> &[u32] {
        &self.slots[self.ranks.slots(rank)]
    }

    pub(crate) fn holds(&self, rank: usize, expert: u32) -> bool {
        self.experts_of(rank).contains(&expert)
    }

    pub(crate) fn count(&self, expert: u32) -> u32 {
        self.counts[expert as usize]
    }

    /// The load of a slot.
    pub(crate) fn share_of(&self, slot: usize) -> f64 {
        self.shares[slot]
    }

    /// The load of each slot of a rank.
    pub(crate) fn shares_of(&self, rank: usize) -> &[f64] {
        &self.shares[self.ranks.slots(rank)]
    }

    /// The load of a replica if the expert had this many.
    pub(crate) fn share_among(&self, expert: u32, count: u32) -> f64 {
        self.weights[expert as usize] / f64::from(count)
    }

    /// The load of each replica.
    pub(crate) fn share(&self, expert: u32) -> f64 {
        self.share_among(expert, self.counts[expert as usize])
    }

    pub(crate) fn times(&self) -> &[f64] {
        &self.times
    }

    pub(crate) fn largest(&self) -> f64 {
        fold_lanes(&self.times, 0.0, |most, t| if t > most { t } else { most })
    }

    /// The time of the live rank that takes the least.
    pub(crate) fn lightest(&self) -> f64 {
        let less = |least, t| if t < least { t } else { least };
        if self.ranks.are_all_live() {
            return fold_lanes(&self.times, f64::INFINITY, less);
        }
        let live = self.ranks.live().map(|rank| self.times[rank]);
        live.fold(f64::INFINITY, less)
    }

    /// The same among the ranks of a node.
    pub(crate) fn lightest_on(&self, node: usize) -> f64 {
        let live = self.ranks.live_on(node).map(|rank| self.times[rank]);
        live.fold(f64::INFINITY, f64::min)
    }

    /// The rank that takes longest, the first of several.
    pub(crate) fn busiest(&self) -> usize {
        let largest = self.largest();
        let first = self.times.iter().position(|&t| t == largest);
        first.unwrap_or_default()
    }

    /// Summed anew, so that a load is a function of the slots and not of the way to them.
    fn refresh(&mut self, rank: usize) {
        let sum: f64 = self.shares[self.ranks.slots(rank)].iter().sum();
        self.times[rank] = sum * self.ranks.pace(rank);
    }

    /// Exchanges what is in two slots.
    pub(crate) fn swap(&mut self, a: usize, b: usize) {
        self.slots.swap(a, b);
        self.shares.swap(a, b);
        self.refresh(self.ranks.rank_of(a));
        self.refresh(self.ranks.rank_of(b));
    }

    /// Puts another expert into a slot that is empty or whose expert has further replicas.
    pub(crate) fn replace(&mut self, slot: usize, expert: u32) {
        let old = std::mem::replace(&mut self.slots[slot], expert);
        self.counts[expert as usize] += 1;
        let come = self.share(expert);
        let gone = match old {
            EMPTY => 0.0,
            old => {
                self.counts[old as usize] -= 1;
                self.share(old)
            }
        };
        for rank in 0..self.ranks.len() {
            let mut changed = false;
            for s in self.ranks.slots(rank) {
                let share = match self.slots[s] {
                    e if e == expert => come,
                    e if e == old && e != EMPTY => gone,
                    _ => continue,
                };
                self.shares[s] = share;
                changed = true;
            }
            if changed {
                self.refresh(rank);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;

    #[test]
    fn moves_keep_the_sums() {
        let topology = Topology::new(3).unwrap();
        let ranks = Ranks::new(&[2, 2, 1], &topology, &[1.0, 2.0, 1.0]);
        let weights = [6.0, 3.0, 2.0];
        let mut layout = Layout::new(&ranks, &weights, vec![0, 1, 0, 2, 0]);
        assert_eq!(layout.times(), [5.0, 2.0, 2.0]);
        layout.replace(4, 1);
        assert_eq!(layout.times(), [4.5, 2.5, 1.5]);
        layout.swap(0, 4);
        assert_eq!(layout.times(), [3.0, 2.5, 3.0]);
        let anew = Layout::new(&ranks, &weights, layout.clone().into_slots());
        assert_eq!(
            (anew.times, anew.counts, anew.shares),
            (layout.times, layout.counts, layout.shares)
        );
    }
}
