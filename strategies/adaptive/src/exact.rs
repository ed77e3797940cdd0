//! A complete search for a layout in which no expert sits twice on a rank and no rank is above a limit.
//!
//! Expert after expert, heaviest first, takes a number of replicas and a set of ranks (branch and bound). Of
//! ranks that hold as much one stands for all, and a beginning that looks like one that failed is not
//! followed again. A beginning ends where the slots that are left cannot carry what is left: the load
//! that ranks will lack up to the limit is more than all loads leave free. The search begins anew now and
//! then with other choices first (Gomes, Selman and Kautz 1998), since a bad one near the root costs all of
//! what is below.

use std::collections::HashSet;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use crate::draws::Draws;
use crate::layout::{EMPTY, Layout};
use crate::ranks::Ranks;
use crate::swap::Work;

/// The parts of the work after which the search begins anew: the first time, and from then on.
const FIRST_PART: usize = 8;
const NEXT_PART: usize = 64;
/// Experts with load times ranks up to which a search is tried: how deep it may go.
const LARGEST: usize = 2048;
/// Loads that differ by less, as a part of the limit, are as large: sums that were added in another order.
const EQUAL: f64 = 1e-11;

/// A layout below a limit without experts twice on a rank, if there is one and the work suffices to find
/// it. All ranks are alike.
///
/// Time: O(R log R + E) for each beginning that is looked at, as far as the work goes.
///
/// # Arguments
///
/// - `counts` - the replicas of each expert that are tried first, `[E]`.
pub(crate) fn place_below<'a>(
    ranks: &'a Ranks,
    weights: &'a [f64],
    counts: &[u32],
    limit: f64,
    work: usize,
) -> Option<Layout<'a>> {
    let mut search = Search::new(ranks, weights, counts, limit);
    if search.heavy.len() * ranks.len() > LARGEST {
        return None;
    }
    let parts = std::iter::once(FIRST_PART).chain((FIRST_PART..NEXT_PART).map(|_| NEXT_PART));
    for part in parts {
        search.begin(ranks, Work::new(work / part));
        match search.place(0, usize::MAX) {
            Outcome::Placed => return search.layout(ranks),
            Outcome::Impossible => return None,
            Outcome::Unknown => search.varies = true,
        }
    }
    None
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Outcome {
    Placed,
    Impossible,
    /// The work is done.
    Unknown,
}

/// What a rank holds.
#[derive(Clone, Copy, Debug)]
struct Rank {
    load: f64,
    free: usize,
}

struct Search<'a> {
    weights: &'a [f64],
    /// Experts with load, heaviest first.
    heavy: Vec<u32>,
    /// The others.
    idle: Vec<u32>,
    /// Replicas that are tried first, `[E]`.
    usual: Vec<u32>,
    limit: f64,
    equal: f64,
    /// What all ranks together can lack up to the limit.
    slack: f64,
    ranks: Vec<Rank>,
    /// Experts with load of each rank, `[R]`.
    held: Vec<Vec<u32>>,
    /// Beginnings that lead nowhere.
    failed: HashSet<u64>,
    /// Whether choices come in another order than the most promising first.
    varies: bool,
    draws: Draws,
    work: Work,
}

/// Some replicas of an expert.
#[derive(Clone, Copy, Debug)]
struct Pieces {
    /// The place of the expert among the heavy ones.
    at: usize,
    count: usize,
    load: f64,
}

impl<'a> Search<'a> {
    fn new(ranks: &Ranks, weights: &'a [f64], counts: &[u32], limit: f64) -> Self {
        let experts = 0..weights.len() as u32;
        let (mut heavy, idle): (Vec<u32>, Vec<u32>) =
            experts.partition(|&e| weights[e as usize] > 0.0);
        heavy.sort_by(|&a, &b| weights[b as usize].total_cmp(&weights[a as usize]));
        Self {
            weights,
            heavy,
            idle,
            usual: counts.to_vec(),
            limit,
            equal: EQUAL * limit,
            slack: ranks.len() as f64 * limit - weights.iter().sum::<f64>(),
            ranks: Vec::new(),
            held: Vec::new(),
            failed: HashSet::new(),
            varies: false,
            draws: Draws::new(),
            work: Work::new(0),
        }
    }

    fn begin(&mut self, ranks: &Ranks, work: Work) {
        let empty = |rank| Rank {
            load: 0.0,
            free: ranks.slots(rank).len(),
        };
        self.ranks = (0..ranks.len()).map(empty).collect();
        self.held = vec![Vec::new(); ranks.len()];
        self.work = work;
    }

    fn weight(&self, at: usize) -> f64 {
        self.weights[self.heavy[at] as usize]
    }

    /// Places the experts from one on; those before have their ranks.
    ///
    /// # Arguments
    ///
    /// - `last` - the replicas of the expert before; an equally heavy one has no more.
    fn place(&mut self, at: usize, last: usize) -> Outcome {
        if self.work.is_done() {
            return Outcome::Unknown;
        }
        self.work.spend(self.ranks.len() + self.heavy.len() - at);
        let Some(spare) = self.spare(at) else {
            return Outcome::Impossible;
        };
        if at == self.heavy.len() {
            return Outcome::Placed;
        }
        let is_like_the_last = at > 0 && self.weight(at - 1) == self.weight(at);
        let most = if is_like_the_last { last } else { usize::MAX };
        let key = self.key(at, most);
        if self.failed.contains(&key) {
            return Outcome::Impossible;
        }
        let (counts, ranks) = self.order(at, most.min(1 + spare));
        for count in counts {
            let pieces = Pieces {
                at,
                count,
                load: self.weight(at) / count as f64,
            };
            let takes =
                |&&rank: &&usize| self.ranks[rank].load + pieces.load <= self.limit + self.equal;
            let open: Vec<usize> = ranks.iter().filter(takes).copied().collect();
            match self.choose(pieces, &open, &mut Vec::with_capacity(count)) {
                Outcome::Impossible => {}
                outcome => return outcome,
            }
        }
        self.failed.insert(key);
        Outcome::Impossible
    }

    /// Slots beyond those that the experts from one on need; `None` if the slots cannot take them, or all
    /// of them cannot carry enough.
    fn spare(&self, at: usize) -> Option<usize> {
        let experts = self.heavy.len() - at + self.idle.len();
        let free: usize = self.ranks.iter().map(|rank| rank.free).sum();
        // An expert fills one slot of a rank.
        if free < experts || self.ranks.iter().any(|rank| rank.free > experts) {
            return None;
        }
        let open = self.ranks.iter().filter(|rank| rank.free > 0);
        let (num_open, room) = open.fold((0, 0.0f64), |(n, room), rank| {
            (n + 1, room.max(self.limit + self.equal - rank.load))
        });
        let (mut needed, mut largest) = (self.idle.len(), 0.0f64);
        for i in at..self.heavy.len() {
            let fewest = (self.weight(i) / room).ceil().max(1.0);
            if fewest > f64::from(num_open) {
                return None;
            }
            needed += fewest as usize;
            largest = largest.max(self.weight(i) / fewest);
        }
        let lacks = |rank: &Rank| (self.limit - rank.load - rank.free as f64 * largest).max(0.0);
        let lacking: f64 = self.ranks.iter().map(lacks).sum();
        let is_possible = needed <= free && lacking <= self.slack + self.equal;
        is_possible.then(|| free - experts)
    }

    /// What all beginnings have in common that are as good as this one.
    fn key(&self, at: usize, most: usize) -> u64 {
        let state = |rank: &Rank| {
            let load = (rank.load / self.equal / 16.0).round() as u64;
            (load, rank.free)
        };
        let mut states: Vec<(u64, usize)> = self.ranks.iter().map(state).collect();
        states.sort_unstable();
        let mut hasher = DefaultHasher::new();
        (at, most, states).hash(&mut hasher);
        hasher.finish()
    }

    /// The numbers of replicas of an expert and the ranks with room, in the order in which they are tried;
    /// ranks that hold as much are neighbours.
    fn order(&mut self, at: usize, most: usize) -> (Vec<usize>, Vec<usize>) {
        let usual = self.usual[self.heavy[at] as usize] as usize;
        let mut ranks: Vec<usize> = (0..self.ranks.len())
            .filter(|&rank| self.ranks[rank].free > 0)
            .collect();
        let mut counts: Vec<usize> = (1..=most.min(ranks.len())).collect();
        counts.sort_by_key(|&count| count.abs_diff(usual));
        let of = &self.ranks;
        ranks.sort_by(|&a, &b| {
            let (a, b) = (of[a], of[b]);
            a.load.total_cmp(&b.load).then(b.free.cmp(&a.free))
        });
        if self.varies {
            if self.draws.below(2) == 0 {
                ranks.reverse();
            }
            if self.draws.below(2) == 0 {
                for i in (1..counts.len()).rev() {
                    counts.swap(i, self.draws.below(i + 1));
                }
            }
        }
        (counts, ranks)
    }

    /// Puts the replicas that are left onto ranks of `open`, and places the other experts.
    fn choose(&mut self, pieces: Pieces, open: &[usize], chosen: &mut Vec<usize>) -> Outcome {
        let left = pieces.count - chosen.len();
        if left == 0 {
            return self.put(pieces, chosen);
        }
        if open.len() < left {
            return Outcome::Impossible;
        }
        let first = self.ranks[open[0]];
        let is_alike = |&&rank: &&usize| {
            let rank = self.ranks[rank];
            rank.free == first.free && (rank.load - first.load).abs() <= self.equal
        };
        let alike = open.iter().take_while(is_alike).count();
        let fewest = left.saturating_sub(open.len() - alike);
        for n in (fewest..=alike.min(left)).rev() {
            chosen.extend(&open[..n]);
            let outcome = self.choose(pieces, &open[alike..], chosen);
            chosen.truncate(chosen.len() - n);
            if outcome != Outcome::Impossible {
                return outcome;
            }
        }
        Outcome::Impossible
    }

    /// Puts the replicas of an expert onto some ranks, and places the other experts.
    fn put(&mut self, pieces: Pieces, chosen: &[usize]) -> Outcome {
        let before: Vec<Rank> = chosen.iter().map(|&rank| self.ranks[rank]).collect();
        for &rank in chosen {
            self.ranks[rank].load += pieces.load;
            self.ranks[rank].free -= 1;
            self.held[rank].push(self.heavy[pieces.at]);
        }
        let outcome = self.place(pieces.at + 1, pieces.count);
        if outcome == Outcome::Impossible {
            for (&rank, before) in chosen.iter().zip(before) {
                self.ranks[rank] = before;
                self.held[rank].pop();
            }
        }
        outcome
    }

    /// The layout, with the experts without load in what is left: one after the other, so that each has
    /// a slot and none is twice on a rank.
    fn layout<'r>(&self, ranks: &'r Ranks) -> Option<Layout<'r>>
    where
        'a: 'r,
    {
        let mut idle = self.idle.iter().copied().cycle();
        let mut slots = vec![EMPTY; ranks.num_slots()];
        for (rank, held) in self.held.iter().enumerate() {
            let free = ranks.slots(rank).len() - held.len();
            let experts = held.iter().copied().chain(idle.by_ref().take(free));
            for (slot, expert) in ranks.slots(rank).zip(experts) {
                slots[slot] = expert;
            }
        }
        if slots.contains(&EMPTY) {
            return None;
        }
        let mut layout = Layout::new(ranks, self.weights, slots);
        self.round_down(&mut layout);
        Some(layout)
    }

    /// A sum that is the limit depends on the order in its last bit: turns what a rank holds until it is no
    /// more, if it can.
    fn round_down(&self, layout: &mut Layout<'_>) {
        for rank in 0..self.ranks.len() {
            let slots = layout.ranks.slots(rank);
            for _ in slots.clone() {
                if layout.times()[rank] <= self.limit {
                    break;
                }
                for slot in slots.clone().skip(1) {
                    layout.swap(slot - 1, slot);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;

    /// The smallest largest load of all layouts without experts twice on a rank: rank after rank takes every
    /// set of experts.
    fn smallest(weights: &[f64], num_ranks: usize, slots: usize) -> f64 {
        fn fill(weights: &[f64], sets: &[Vec<usize>], left: usize, ranks: &mut Vec<usize>) -> f64 {
            if left == 0 {
                let mut counts = vec![0.0; weights.len()];
                ranks
                    .iter()
                    .flat_map(|&set| &sets[set])
                    .for_each(|&e| counts[e] += 1.0);
                if counts.contains(&0.0) {
                    return f64::INFINITY;
                }
                let load = |&set: &usize| -> f64 {
                    sets[set].iter().map(|&e| weights[e] / counts[e]).sum()
                };
                return ranks.iter().map(load).fold(0.0, f64::max);
            }
            let mut least = f64::INFINITY;
            for set in ranks.last().copied().unwrap_or(0)..sets.len() {
                ranks.push(set);
                least = least.min(fill(weights, sets, left - 1, ranks));
                ranks.pop();
            }
            least
        }
        let bits = (0..1u32 << weights.len()).filter(|bits| bits.count_ones() as usize == slots);
        let experts = |bits: u32| (0..weights.len()).filter(|e| bits >> e & 1 != 0).collect();
        fill(
            weights,
            &bits.map(experts).collect::<Vec<_>>(),
            num_ranks,
            &mut Vec::new(),
        )
    }

    #[test]
    fn it_finds_what_there_is_and_nothing_below() {
        let mut draws = Draws::new();
        for case in 0..150 {
            let (num_ranks, slots) = [(2, 2), (2, 3), (3, 2), (4, 2), (3, 3), (5, 1)][case % 6];
            let most = (num_ranks * slots).min(6);
            let num_experts = slots + draws.below(most - slots + 1);
            let weights: Vec<f64> = (0..num_experts)
                .map(|_| match draws.below(4) {
                    0 => 0.0,
                    1 => draws.below(4) as f64,
                    2 => draws.below(1000) as f64,
                    _ => (1u64 << draws.below(12)) as f64,
                })
                .collect();
            if weights.iter().all(|&w| w == 0.0) {
                continue;
            }
            let topology = Topology::new(num_ranks).unwrap();
            let ranks = Ranks::new(&vec![slots; num_ranks], &topology, &[]);
            let counts = vec![1 + draws.below(num_ranks) as u32; num_experts];
            let least = smallest(&weights, num_ranks, slots);
            let search = |limit: f64| place_below(&ranks, &weights, &counts, limit, 1_000_000);
            let found = search(least).unwrap();
            assert!(
                found.largest() <= least * (1.0 + 1e-9),
                "{weights:?} {num_ranks} {slots}"
            );
            for rank in 0..num_ranks {
                let held = found.experts_of(rank);
                let repeats = (1..slots).any(|i| held[..i].contains(&held[i]));
                assert!(!repeats, "twice on a rank");
            }
            assert!((0..num_experts as u32).all(|e| found.count(e) > 0));
            assert!(
                search(least * (1.0 - 1e-6)).is_none(),
                "{weights:?} {num_ranks} {slots}"
            );
        }
    }

    #[test]
    fn work_ends() {
        let topology = Topology::new(6).unwrap();
        let ranks = Ranks::new(&[4; 6], &topology, &[]);
        let weights: Vec<f64> = (0..21).map(|e| 1.0 + f64::from(e * e % 17)).collect();
        let mean = weights.iter().sum::<f64>() / 6.0;
        assert!(place_below(&ranks, &weights, &[1; 21], mean * 2.0, 0).is_none());
        assert!(place_below(&ranks, &weights, &[1; 21], mean * 2.0, 100_000).is_some());
    }
}
