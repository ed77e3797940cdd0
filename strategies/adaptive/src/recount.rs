//! Replica counts, searched on what a packing that fills rank after rank makes of them.
//!
//! Where few slots hold few heavy pieces, the counts decide which pieces fill a rank together, and one
//! exchange of replicas moves all pieces of two experts at once. So the search goes over the counts
//! alone, and every trial is packed anew: each rank takes the largest piece that is left and those that
//! fill it best beside it (minimum bin slack, Gupta and Ho 1999). It is an iterated local search
//! (Lourenço, Martin and Stützle 2003): exchanges that do no harm, and several at once where none helped
//! for long.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

use crate::draws::Draws;
use crate::layout::{EMPTY, Layout};
use crate::swap::Work;

/// Experts with one replica below this part of the limit are sand: it fills what is left.
const SAND: f64 = 0.02;
/// What may stay free beside the pieces of a rank, as a part of the limit.
const NEAR: f64 = 0.0005;
/// Pieces beside the largest one of a rank that are looked for, at most.
const BESIDE: usize = 4;
/// Beginnings of them that are tried for a rank.
const BEGINNINGS: usize = 60;
/// Packings of a search.
const TRIALS: usize = 6000;
/// By how much each limit is below the load that is reached.
const STEP: f64 = 0.001;
/// Trials without an improvement after which several replicas are exchanged at once, and how many.
const PATIENCE: usize = 300;
const KICK: usize = 3;
/// How much worse than the best counts others may be to be searched from.
const WORSE: f64 = 1.2;

/// Layouts with other replica counts: the best whose largest load is below that of this one, if the search
/// finds any, and the one that came closest to the next step, for other moves to go on from. All ranks are
/// alike, and no expert is twice on a rank.
///
/// Time: O(trials × (R × E + P)), as far as the work goes.
pub(crate) fn recount<'a>(layout: &Layout<'a>, target: f64, work: &mut Work) -> Vec<Layout<'a>> {
    let mut search = Search::new(layout);
    let mut best: Option<Layout<'a>> = None;
    let mut limit = layout.largest() * (1.0 - STEP);
    let mut counts = search.counts.clone();
    let mut excess = search.excess(&counts, limit, work);
    let (mut kept, mut least) = (counts.clone(), excess);
    let (mut closest, mut distance) = (counts.clone(), excess);
    let mut since = 0;
    for _ in 0..TRIALS {
        if work.is_done() || limit < target {
            break;
        }
        since += 1;
        let mut trial = counts.clone();
        let kicks = if since > PATIENCE { KICK } else { 1 };
        if kicks > 1 {
            if excess > WORSE * least {
                trial.clone_from(&kept);
            }
            (kept, least) = (trial.clone(), search.excess(&trial, limit, work));
        }
        for _ in 0..kicks {
            let _ = search.exchange(&mut trial, limit);
        }
        let after = search.excess(&trial, limit, work);
        if after > excess && kicks == 1 {
            continue;
        }
        if after < excess * (1.0 - NEAR) || kicks > 1 {
            since = 0;
        }
        (counts, excess) = (trial, after);
        let found = (excess == 0.0).then(|| search.layout(&counts, limit));
        if let Some(found) = found.flatten() {
            limit = (found.largest() * (1.0 - STEP)).min(limit * (1.0 - STEP / 2.0));
            best = Some(found);
            excess = search.excess(&counts, limit, work);
            (kept, least) = (counts.clone(), excess);
            distance = f64::INFINITY;
        }
        if excess < distance {
            distance = excess;
            closest.clone_from(&counts);
        }
    }
    let closest = search.layout(&closest, limit);
    best.into_iter().chain(closest).collect()
}

struct Search<'l, 'a> {
    layout: &'l Layout<'a>,
    counts: Vec<u32>,
    /// Experts whose counts are searched or that are no sand.
    heavy: Vec<u32>,
    /// The others, heaviest first.
    sand: Vec<u32>,
    num_ranks: usize,
    slots_per_rank: usize,
    draws: Draws,
}

impl<'l, 'a> Search<'l, 'a> {
    fn new(layout: &'l Layout<'a>) -> Self {
        let experts = 0..layout.weights.len() as u32;
        let sand = SAND * layout.largest();
        let is_heavy = |&e: &u32| layout.weights[e as usize] > sand || layout.count(e) > 1;
        let (heavy, mut light): (Vec<u32>, Vec<u32>) = experts.clone().partition(is_heavy);
        light.sort_by(|&a, &b| layout.weights[b as usize].total_cmp(&layout.weights[a as usize]));
        Self {
            layout,
            counts: experts.map(|e| layout.count(e)).collect(),
            heavy,
            sand: light,
            num_ranks: layout.ranks.len(),
            slots_per_rank: layout.ranks.slots(0).len(),
            draws: Draws::new(),
        }
    }

    /// Gives a replica of some expert to another one; `None` if no expert can spare one.
    fn exchange(&mut self, counts: &mut [u32], limit: f64) -> Option<()> {
        const TRIES: usize = 1000;
        let layout = self.layout;
        let slots = layout.slots();
        let can_lose = |e: u32, counts: &[u32]| {
            let count = counts[e as usize];
            count > 1 && layout.share_among(e, count - 1) <= limit
        };
        // By slot, so that experts with many replicas are drawn more often.
        let lost = (0..TRIES)
            .map(|_| slots[self.draws.below(slots.len())])
            .find(|&e| can_lose(e, counts))?;
        let gained = (0..TRIES)
            .map(|i| match i % 2 {
                0 => slots[self.draws.below(slots.len())],
                _ => self.heavy[self.draws.below(self.heavy.len())],
            })
            .find(|&e| {
                let is_sand = layout.weights[e as usize] < SAND * limit;
                e != lost && !is_sand && (counts[e as usize] as usize) < self.num_ranks
            })?;
        counts[lost as usize] -= 1;
        counts[gained as usize] += 1;
        Some(())
    }

    /// What a packing leaves above the limit, squared and summed over the ranks; infinite if there is none.
    fn excess(&self, counts: &[u32], limit: f64, work: &mut Work) -> f64 {
        let Some(packed) = self.pack(counts, limit, work) else {
            return f64::INFINITY;
        };
        let over = packed.iter().map(|rank| (-rank.room).max(0.0));
        over.map(|over| over * over).sum()
    }

    fn layout(&self, counts: &[u32], limit: f64) -> Option<Layout<'a>> {
        let packed = self.pack(counts, limit, &mut Work::new(usize::MAX))?;
        let mut slots = vec![EMPTY; self.layout.ranks.num_slots()];
        for (rank, filled) in packed.iter().enumerate() {
            let of_rank = &mut slots[self.layout.ranks.slots(rank)];
            of_rank[..filled.experts.len()].copy_from_slice(&filled.experts);
        }
        let is_full = !slots.contains(&EMPTY);
        is_full.then(|| Layout::new(self.layout.ranks, self.layout.weights, slots))
    }

    /// Fills rank after rank; `None` if that leaves pieces of one expert for the same rank.
    fn pack(&self, counts: &[u32], limit: f64, work: &mut Work) -> Option<Vec<Filled>> {
        let mut pieces = Pieces::new(self, counts);
        let mut packed: Vec<Filled> = Vec::with_capacity(self.num_ranks);
        while !pieces.of.is_empty() {
            let ranks = self.num_ranks - packed.len();
            let spread = pieces.of.iter().all(|piece| piece.left as usize <= ranks);
            if ranks == 0 || !spread {
                return None;
            }
            let chosen = pieces.choose(limit, ranks, self.slots_per_rank)?;
            // The same again as often as there are such pieces.
            let often = chosen.iter().map(|&i| pieces.of[i].left).min()?;
            let filled = Filled {
                room: limit - chosen.iter().map(|&i| pieces.of[i].load).sum::<f64>(),
                experts: chosen.iter().map(|&i| pieces.of[i].expert).collect(),
            };
            pieces.take(&chosen, often);
            packed.extend(std::iter::repeat_n(filled, often as usize));
        }
        work.spend(pieces.looked_at);
        packed.resize_with(self.num_ranks, || Filled {
            room: limit,
            experts: Vec::new(),
        });
        self.strew(&mut packed)?;
        Some(packed)
    }

    /// Fills the slots that are left with sand, the heaviest onto the rank with the most room.
    fn strew(&self, packed: &mut [Filled]) -> Option<()> {
        let mut open: BinaryHeap<(Roomy, Reverse<usize>)> = packed
            .iter()
            .enumerate()
            .filter(|(_, filled)| filled.experts.len() < self.slots_per_rank)
            .map(|(rank, filled)| (Roomy(filled.room), Reverse(rank)))
            .collect();
        for &expert in &self.sand {
            let (_, rank) = open.pop()?;
            let filled = &mut packed[rank.0];
            filled.room -= self.layout.weights[expert as usize];
            filled.experts.push(expert);
            if filled.experts.len() < self.slots_per_rank {
                open.push((Roomy(filled.room), rank));
            }
        }
        Some(())
    }
}

/// A rank and what it holds.
#[derive(Clone, Debug)]
struct Filled {
    /// Load up to the limit.
    room: f64,
    experts: Vec<u32>,
}

/// Room, in order.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Roomy(f64);

impl Eq for Roomy {}

impl Ord for Roomy {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.total_cmp(&other.0)
    }
}

impl PartialOrd for Roomy {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The replicas of an expert that are not placed yet.
#[derive(Clone, Copy, Debug)]
struct Piece {
    load: f64,
    left: u32,
    expert: u32,
}

/// What is not placed yet, largest first.
struct Pieces {
    of: Vec<Piece>,
    num_left: usize,
    looked_at: usize,
}

/// Some pieces that go together.
#[derive(Clone, Copy, Debug)]
struct Set {
    load: f64,
    at: [u32; BESIDE],
    len: usize,
}

impl Set {
    const EMPTY: Self = Self {
        load: 0.0,
        at: [0; BESIDE],
        len: 0,
    };

    fn with(mut self, at: usize, load: f64) -> Self {
        self.at[self.len] = at as u32;
        self.len += 1;
        self.load += load;
        self
    }
}

impl Pieces {
    fn new(search: &Search<'_, '_>, counts: &[u32]) -> Self {
        let piece = |&expert: &u32| Piece {
            load: search.layout.share_among(expert, counts[expert as usize]),
            left: counts[expert as usize],
            expert,
        };
        let mut of: Vec<Piece> = search.heavy.iter().map(piece).collect();
        of.sort_by(|a, b| b.load.total_cmp(&a.load));
        Self {
            num_left: of.iter().map(|piece| piece.left as usize).sum(),
            of,
            looked_at: 0,
        }
    }

    /// The pieces of the next rank: the largest, and what fills the rank best beside it. Without a
    /// piece that fits, or where more have to go, the smallest.
    fn choose(&mut self, limit: f64, ranks: usize, slots_per_rank: usize) -> Option<Vec<usize>> {
        let room = limit - self.of[0].load;
        let most = (slots_per_rank - 1).min(BESIDE);
        let mut beginnings = BEGINNINGS;
        let set = self.best(1, room, most, room - NEAR * limit, &mut beginnings);
        let mut chosen = vec![0];
        chosen.extend(set.at[..set.len].iter().map(|&i| i as usize));
        // The ranks that follow hold no more than this.
        let fewest = self.num_left.saturating_sub(slots_per_rank * (ranks - 1));
        if chosen.len() < fewest {
            let len = self.of.len();
            if len.min(slots_per_rank) < fewest {
                return None;
            }
            chosen.truncate(1);
            chosen.extend(len - (fewest - 1)..len);
        }
        Some(chosen)
    }

    /// Of the sets of at most `most` pieces from one on that fit into the room, the one with the most load, or
    /// the first that is found with enough.
    fn best(
        &mut self,
        from: usize,
        room: f64,
        most: usize,
        enough: f64,
        beginnings: &mut usize,
    ) -> Set {
        let first = from + self.of[from..].partition_point(|piece| piece.load > room);
        self.looked_at += 1;
        if most == 0 || first == self.of.len() {
            return Set::EMPTY;
        }
        if most <= 2 {
            let single = Set::EMPTY.with(first, self.of[first].load);
            return match most {
                2 if single.load < enough => self.best_pair(first, room, enough, single),
                _ => single,
            };
        }
        let mut best = Set::EMPTY;
        for at in first..self.of.len() {
            let load = self.of[at].load;
            // Even as many of this size are no more.
            if *beginnings == 0 || best.load >= enough || load * most as f64 <= best.load {
                break;
            }
            *beginnings -= 1;
            let rest = self.best(at + 1, room - load, most - 1, enough - load, beginnings);
            if rest.load + load > best.load {
                best = rest.with(at, load);
            }
        }
        best
    }

    /// A pair with more load than a set has, or that set.
    fn best_pair(&mut self, first: usize, room: f64, enough: f64, set: Set) -> Set {
        let (mut i, mut j) = (first, self.of.len() - 1);
        let (mut most, mut best) = (set.load, None);
        while i < j && most < enough {
            self.looked_at += 1;
            let load = self.of[i].load + self.of[j].load;
            if load > room {
                i += 1;
                continue;
            }
            if load > most {
                (most, best) = (load, Some((i, j)));
            }
            j -= 1;
        }
        match best {
            Some((i, j)) => Set::EMPTY.with(i, self.of[i].load).with(j, self.of[j].load),
            None => set,
        }
    }

    fn take(&mut self, chosen: &[usize], often: u32) {
        for &i in chosen {
            self.of[i].left -= often;
        }
        self.num_left -= chosen.len() * often as usize;
        self.of.retain(|piece| piece.left > 0);
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::Topology;

    use super::*;
    use crate::ranks::Ranks;

    #[test]
    fn counts_change_until_pieces_fill_ranks() {
        // The load is that of six ranks, the counts leave some with hardly anything.
        let topology = Topology::new(6).unwrap();
        let ranks = Ranks::new(&[3; 6], &topology, &[]);
        let weights = [
            2.4, 1.2, 0.8, 0.6, 0.5, 0.3, 0.2, 0.001, 0.001, 0.001, 0.001,
        ];
        let slots = vec![0, 6, 7, 0, 5, 8, 0, 9, 10, 1, 3, 7, 1, 3, 8, 2, 4, 9];
        let layout = Layout::new(&ranks, &weights, slots);
        let before = layout.largest();
        let found = recount(&layout, 1.0, &mut Work::new(10_000_000)).swap_remove(0);
        assert!(
            found.largest() < before * 0.95,
            "{} {before}",
            found.largest()
        );
        for rank in 0..6 {
            let mut held = found.experts_of(rank).to_vec();
            held.sort_unstable();
            held.dedup();
            assert_eq!(held.len(), 3, "twice on a rank");
        }
        assert!((0..weights.len() as u32).all(|e| found.count(e) > 0));
    }

    #[test]
    fn without_work_or_replicas_nothing_changes() {
        let topology = Topology::new(2).unwrap();
        let ranks = Ranks::new(&[2; 2], &topology, &[]);
        let whole = Layout::new(&ranks, &[4.0, 1.0, 1.0, 1.0], vec![0, 1, 2, 3]);
        let found = recount(&whole, 1.0, &mut Work::new(1_000));
        assert!(found.iter().all(|layout| layout.largest() >= 5.0));
        let split = Layout::new(&ranks, &[4.0, 1.0, 1.0], vec![0, 1, 0, 2]);
        let found = recount(&split, 1.0, &mut Work::new(0));
        assert!(found.iter().all(|layout| layout.largest() >= 3.0));
    }
}
