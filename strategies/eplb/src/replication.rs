//! How many replicas each expert gets.

use moekit_placement::order::{heavy_first, index_of};

use crate::tournament::{Games, Tournaments, lists, lists_mut, play_all, replace};

/// Gives each slot beyond one per expert to the expert with the largest load per replica, in several
/// sets of experts side by side.
#[derive(Debug)]
pub(crate) struct Replication {
    /// Experts and slots of a set.
    experts: usize,
    slots: usize,
    /// The name of the expert of each replica, `[sets, slots]`. In a set every expert
    /// comes once, then those with more, in the order in which they got them.
    pub(crate) replicas: Vec<u32>,
    /// The load of each replica, `[sets, slots]`.
    pub(crate) loads: Vec<f32>,
    /// Replicas of each expert, `[sets, experts]`. Whole numbers, which divide loads as they are.
    counts: Vec<f32>,
    /// Between the experts of a set.
    tournaments: Tournaments,
}

impl Replication {
    pub(crate) fn new(experts: usize, slots: usize) -> Self {
        Self {
            experts,
            slots,
            replicas: Vec::new(),
            loads: Vec::new(),
            counts: Vec::new(),
            tournaments: Tournaments::new(experts),
        }
    }

    /// Replicates experts with these loads and names, `[sets, experts]`.
    pub(crate) fn run(&mut self, loads: &[f32], names: &[u32]) {
        let (experts, slots) = (self.experts, self.slots);
        let len = loads.len() / experts * slots;
        self.replicas.resize(len, 0);
        self.loads.resize(len, 0.0);
        self.counts.clear();
        self.counts.resize(loads.len(), 1.0);
        let sets = loads.len() / experts;
        let mut replicated = Sets {
            experts,
            slots,
            loads,
            counts: &mut self.counts,
            replicas: &mut self.replicas,
        };
        self.tournaments.play(&mut replicated, sets);
        let given = loads.chunks_exact(experts).zip(names.chunks_exact(experts));
        let given = given.zip(self.counts.chunks_exact(experts));
        let replicas = self.replicas.chunks_exact_mut(slots);
        let shares = self.loads.chunks_exact_mut(slots);
        for (((loads, names), counts), (replicas, shares)) in given.zip(replicas.zip(shares)) {
            let (share, more_shares) = shares.split_at_mut(experts);
            for ((share, load), count) in share.iter_mut().zip(loads).zip(counts) {
                *share = load / count;
            }
            let (first, more) = replicas.split_at_mut(experts);
            first.copy_from_slice(names);
            for (replica, more_share) in more.iter_mut().zip(more_shares) {
                let expert = *replica as usize;
                (*replica, *more_share) = (names[expert], share[expert]);
            }
        }
    }
}

/// Sets of experts that are being replicated.
struct Sets<'a> {
    experts: usize,
    slots: usize,
    loads: &'a [f32],
    counts: &'a mut [f32],
    /// Of those beyond the first the expert in its set.
    replicas: &'a mut [u32],
}

impl Games for Sets<'_> {
    #[inline(always)]
    fn play<const N: usize>(&mut self, trees: [&mut [u64]; N], first: usize) {
        let loads = lists::<_, N>(self.loads, self.experts, first);
        let counts = lists_mut::<_, N>(self.counts, self.experts, first);
        let replicas = lists_mut::<_, N>(self.replicas, self.slots, first);
        // Gives the expert of a key a replica. The expert, and its key then.
        let mut give = |set: usize, replica: usize, busiest: u64| {
            let expert = index_of(busiest);
            replicas[set][replica] = expert;
            let count = &mut counts[set][expert as usize];
            *count += 1.0;
            let share = loads[set][expert as usize] / *count;
            (expert as usize, heavy_first(share, expert))
        };
        let mut busiest = [0; N];
        for set in 0..N {
            let keys = (0..).zip(loads[set]);
            let keys = keys.map(|(expert, &load)| heavy_first(load, expert));
            busiest[set] = play_all(trees[set], keys);
        }
        for replica in self.experts..self.slots {
            for set in 0..N {
                let (expert, key) = give(set, replica, busiest[set]);
                busiest[set] = replace(trees[set], expert, key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_share_gets_the_next_replica() {
        let mut replication = Replication::new(3, 6);
        replication.run(&[2.0, 2.0, 1.0, 0.0, 0.0, 5.0], &[10, 11, 12, 20, 21, 22]);
        let replicas = [10, 11, 12, 10, 11, 10, 20, 21, 22, 22, 22, 22];
        assert_eq!(replication.replicas, replicas);
        let third = 2.0 / 3.0;
        assert_eq!(replication.loads[..6], [third, 1.0, 1.0, third, 1.0, third]);
        assert_eq!(replication.loads[6..], [0.0, 0.0, 1.25, 1.25, 1.25, 1.25]);
    }
}
