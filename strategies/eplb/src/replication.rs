//! How many replicas each expert gets.

use moekit_placement::order::{heavy_first, index_of};

use crate::tournament::{Game, Tournaments, play_all, replace};

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
        let counts = self.counts.chunks_exact_mut(experts);
        let given = loads.chunks_exact(experts).zip(names.chunks_exact(experts));
        let replicas = self.replicas.chunks_exact_mut(slots);
        let shares = self.loads.chunks_exact_mut(slots);
        let sets = given.zip(counts).zip(replicas.zip(shares));
        let sets = sets.map(|(((loads, names), counts), (replicas, shares))| Set {
            loads,
            names,
            counts,
            busiest: 0,
            replicas,
            shares,
        });
        self.tournaments.play(sets, experts..slots);
    }
}

/// A set of experts that are being replicated.
struct Set<'a> {
    loads: &'a [f32],
    names: &'a [u32],
    counts: &'a mut [f32],
    /// The key of the expert with the largest load per replica.
    busiest: u64,
    replicas: &'a mut [u32],
    shares: &'a mut [f32],
}

impl Game for Set<'_> {
    #[inline(always)]
    fn begin(&mut self, tree: &mut [u64]) {
        let keys = (0..).zip(self.loads);
        play_all(tree, keys.map(|(expert, &load)| heavy_first(load, expert)));
        self.busiest = tree[1];
    }

    /// Gives the busiest expert a replica.
    #[inline(always)]
    fn turn(&mut self, tree: &mut [u64], replica: usize) {
        let expert = index_of(self.busiest);
        self.replicas[replica] = expert;
        let count = &mut self.counts[expert as usize];
        *count += 1.0;
        let share = self.loads[expert as usize] / *count;
        self.busiest = replace(tree, expert as usize, heavy_first(share, expert));
    }

    /// Names the replicas and splits the loads.
    #[inline(always)]
    fn end(&mut self) {
        let experts = self.loads.len();
        let (share, more_shares) = self.shares.split_at_mut(experts);
        for ((share, load), count) in share.iter_mut().zip(self.loads).zip(&*self.counts) {
            *share = load / count;
        }
        let (first, more) = self.replicas.split_at_mut(experts);
        first.copy_from_slice(self.names);
        for (replica, more_share) in more.iter_mut().zip(more_shares) {
            let expert = *replica as usize;
            (*replica, *more_share) = (self.names[expert], share[expert]);
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
