//! What a unit does to the load of the ranks.

use std::cmp::Ordering;

use super::walk::{Arrival, Walk};

/// How good a unit is; larger is better.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Gain {
    /// Whether it brings back an expert that no living rank holds.
    restores: bool,
    /// By how much the largest rank load drops, per byte.
    drop: f64,
    /// By how much the sum of the squares of the rank loads drops, per byte: of units that leave the
    /// largest load as it is, the one that evens out the others comes first.
    squares: f64,
}

impl Gain {
    pub(super) fn restores(self) -> bool {
        self.restores
    }

    /// Orders gains; loads are finite, so all compare.
    pub(super) fn cmp(&self, other: &Self) -> Ordering {
        self.restores
            .cmp(&other.restores)
            .then(self.drop.total_cmp(&other.drop))
            .then(self.squares.total_cmp(&other.squares))
    }
}

/// The load of each living rank, with every expert's load split evenly over its replicas.
pub(super) struct Loads<'a> {
    load: &'a [f64],
    /// The rank of each replica of an expert.
    replicas: Vec<Vec<usize>>,
    ranks: Vec<f64>,
    /// Ranks, the busiest first.
    busiest: Vec<usize>,
}

impl<'a> Loads<'a> {
    /// O(P + R log R).
    pub(super) fn of(slots: &[Vec<usize>], load: &'a [f64]) -> Self {
        let mut replicas = vec![Vec::new(); load.len()];
        for (rank, held) in slots.iter().enumerate() {
            for &expert in held {
                replicas[expert].push(rank);
            }
        }
        let share = |&e: &usize| load[e] / replicas[e].len() as f64;
        let ranks: Vec<f64> = slots
            .iter()
            .map(|held| held.iter().map(share).sum())
            .collect();
        let mut busiest: Vec<usize> = (0..ranks.len()).collect();
        busiest.sort_by(|&a, &b| ranks[b].total_cmp(&ranks[a]));
        Self {
            load,
            replicas,
            ranks,
            busiest,
        }
    }

    /// Load of the busiest rank.
    pub(super) fn largest(&self) -> f64 {
        self.busiest.first().map_or(0.0, |&rank| self.ranks[rank])
    }

    /// The gain of a unit, per byte of `bytes` for each arrival. O(r²) for the r replicas of its
    /// experts.
    pub(super) fn gain(&self, walk: &Walk, unit: &[Arrival], bytes: f64) -> Gain {
        let changed = self.changed(unit);
        let is_same = |rank: &&usize| !changed.iter().any(|(r, _)| r == *rank);
        let others = self.busiest.iter().find(is_same);
        let mut largest = others.map_or(0.0, |&rank| self.ranks[rank]);
        let mut squares = 0.0;
        for &(rank, after) in &changed {
            largest = largest.max(after);
            squares += (self.ranks[rank] - after) * (self.ranks[rank] + after);
        }
        let cost = bytes * unit.len() as f64;
        Gain {
            restores: unit.iter().any(|a| walk.is_orphan(a.expert)),
            drop: (self.largest() - largest) / cost,
            squares: squares / cost,
        }
    }

    /// The ranks whose load a unit changes, with their new load.
    fn changed(&self, unit: &[Arrival]) -> Vec<(usize, f64)> {
        let mut loads: Vec<(usize, f64)> = Vec::new();
        let mut add = |rank: usize, more: f64| match loads.iter_mut().find(|(r, _)| *r == rank) {
            Some((_, load)) => *load += more,
            None => loads.push((rank, self.ranks[rank] + more)),
        };
        let overwritten = |a: &Arrival| a.overwrites.map(|(_, expert)| expert);
        let mut experts: Vec<usize> = unit
            .iter()
            .flat_map(|a| overwritten(a).into_iter().chain([a.expert]))
            .collect();
        experts.sort_unstable();
        experts.dedup();
        for expert in experts {
            let arriving = unit.iter().filter(|a| a.expert == expert);
            let leaving = unit.iter().filter(|a| overwritten(a) == Some(expert));
            let before = self.replicas[expert].len();
            let after = before + arriving.clone().count() - leaving.clone().count();
            let share = self.load[expert] / after as f64;
            if before != after && before > 0 {
                let change = share - self.load[expert] / before as f64;
                for &rank in &self.replicas[expert] {
                    add(rank, change);
                }
            }
            for a in arriving {
                add(a.rank, share);
            }
            for a in leaving {
                add(a.rank, -share);
            }
        }
        loads
    }
}

#[cfg(test)]
mod tests {
    use moekit_routing::{Placement, Topology};

    use super::super::group::Group;
    use super::*;

    #[test]
    fn the_gain_is_the_difference_of_the_loads() {
        let current = Placement::from_ranks(3, &[[0, 1], [1, 2]]).unwrap();
        let target = Placement::from_ranks(3, &[[0, 2], [1, 0]]).unwrap();
        let topology = Topology::new(2).unwrap();
        let mut walk = Walk::new(&current, &target, &Group::new(&topology, &[]));
        let load = [8.0, 4.0, 2.0];
        let before = Loads::of(walk.slots(), &load);
        assert_eq!(
            (before.largest(), &before.ranks[..]),
            (10.0, &[10.0, 4.0][..])
        );

        // Expert 2 takes the place of expert 1, which rank 1 has too.
        let unit = [Arrival {
            rank: 0,
            expert: 2,
            overwrites: Some((1, 1)),
        }];
        let gain = before.gain(&walk, &unit, 2.0);
        walk.apply(&unit);
        let after = Loads::of(walk.slots(), &load);
        assert_eq!(after.ranks, [9.0, 5.0]);
        assert_eq!(gain.drop, (10.0 - 9.0) / 2.0);
        assert_eq!(gain.squares, (100.0 + 16.0 - 81.0 - 25.0) / 2.0);
        assert!(!gain.restores);
    }
}
