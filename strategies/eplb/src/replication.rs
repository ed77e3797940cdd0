//! How many replicas each expert gets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use moekit_placement::order::{HeaviestFirst, heavy_first, index_of};

/// Gives each slot beyond one per expert to the expert with the largest load per replica.
#[derive(Debug, Default)]
pub(crate) struct Replication {
    /// The expert of each replica: every expert once, then those with more, in the order in which
    /// they got them.
    pub(crate) replicas: Vec<u32>,
    /// Replicas of each expert.
    counts: Vec<u32>,
    /// The experts, heaviest first.
    sorted: HeaviestFirst,
    /// How many of them have several replicas: the heaviest do.
    num_several: usize,
    /// Experts with several replicas, by load per replica.
    several: BinaryHeap<Reverse<u64>>,
    /// Their replicas.
    shared: Vec<u64>,
}

impl Replication {
    pub(crate) fn run(&mut self, load: &[f32], slots: usize) {
        self.replicas.clear();
        self.replicas.extend(0..load.len() as u32);
        self.counts.clear();
        self.counts.resize(load.len(), 1);
        let sorted = self.sorted.sort(load);
        self.several.clear();
        self.num_several = 0;
        for _ in load.len()..slots {
            // The busiest is either the heaviest expert with one replica or one with several.
            let of_single = sorted.get(self.num_several).copied();
            let of_several = self.several.peek().map(|top| top.0);
            let several_first = of_several.is_some_and(|key| of_single.is_none_or(|s| key < s));
            let busiest = if several_first { of_several } else { of_single };
            let busiest = index_of(busiest.unwrap_or_default());
            self.replicas.push(busiest);
            let count = &mut self.counts[busiest as usize];
            *count += 1;
            let share = heavy_first(load[busiest as usize] / *count as f32, busiest);
            if several_first {
                if let Some(mut top) = self.several.peek_mut() {
                    top.0 = share;
                }
            } else {
                self.num_several += 1;
                self.several.push(Reverse(share));
            }
        }
    }

    /// All replicas, the heaviest first: those of experts with several merged into the others,
    /// which are sorted already.
    pub(crate) fn heaviest_first(&mut self, load: &[f32], order: &mut Vec<u64>) {
        let (several, single) = self.sorted.keys().split_at(self.num_several);
        let first = several.iter().map(|&key| (index_of(key), index_of(key)));
        let more = (0..).zip(self.replicas.iter().copied()).skip(load.len());
        self.shared.clear();
        self.shared
            .extend(first.chain(more).map(|(replica, expert)| {
                let expert = expert as usize;
                heavy_first(load[expert] / self.counts[expert] as f32, replica)
            }));
        self.shared.sort_unstable();
        order.clear();
        let mut left = single;
        for &shared in &self.shared {
            while let Some((&key, rest)) = left.split_first()
                && key < shared
            {
                order.push(key);
                left = rest;
            }
            order.push(shared);
        }
        order.extend_from_slice(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_share_gets_the_next_replica() {
        let mut replication = Replication::default();
        replication.run(&[2.0, 2.0, 1.0], 6);
        assert_eq!(replication.replicas, [0, 1, 2, 0, 1, 0]);
        assert_eq!(replication.counts, [3, 2, 1]);
    }
}
