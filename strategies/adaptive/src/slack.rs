//! Which pieces fill a rank: minimum bin slack (Gupta and Ho 1999), and the sand beside them.

use std::cmp::{Ordering, Reverse};
use std::collections::BinaryHeap;

/// What may stay free beside the pieces of a rank, as a part of the limit.
pub(crate) const NEAR: f64 = 0.0005;
/// Pieces beside the largest one of a rank that are looked for, at most.
const BESIDE: usize = 4;
/// Beginnings of them that are tried for a rank.
const BEGINNINGS: usize = 60;

/// The replicas of an expert that are not placed yet.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    pub(crate) load: f64,
    pub(crate) left: u32,
    pub(crate) expert: u32,
}

/// What is not placed yet, largest first.
pub(crate) struct Pieces {
    pub(crate) of: Vec<Piece>,
    num_left: usize,
    /// Pieces and pairs that have been looked at.
    pub(crate) looked_at: usize,
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
    /// # Arguments
    ///
    /// - `of` - largest first.
    pub(crate) fn new(of: Vec<Piece>) -> Self {
        Self {
            num_left: of.iter().map(|piece| piece.left as usize).sum(),
            of,
            looked_at: 0,
        }
    }

    /// The pieces of the next rank: the largest, and what fills the rank best beside it. Without a
    /// piece that fits, or where more have to go, the smallest.
    pub(crate) fn choose(
        &mut self,
        limit: f64,
        ranks: usize,
        slots_per_rank: usize,
    ) -> Option<Vec<usize>> {
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

    /// Takes pieces as often for as many ranks.
    pub(crate) fn take(&mut self, chosen: &[usize], often: u32) {
        for &i in chosen {
            self.of[i].left -= often;
        }
        self.num_left -= chosen.len() * often as usize;
        self.of.retain(|piece| piece.left > 0);
    }
}

/// A rank and what it holds.
#[derive(Clone, Debug)]
pub(crate) struct Filled {
    /// Load up to the limit.
    pub(crate) room: f64,
    pub(crate) experts: Vec<u32>,
}

/// Fills the slots that are left with sand, the heaviest onto the rank with the most room.
pub(crate) fn strew(sand: &[Piece], packed: &mut [Filled], slots_per_rank: usize) -> Option<()> {
    let mut open: BinaryHeap<(Roomy, Reverse<usize>)> = packed
        .iter()
        .enumerate()
        .filter(|(_, filled)| filled.experts.len() < slots_per_rank)
        .map(|(rank, filled)| (Roomy(filled.room), Reverse(rank)))
        .collect();
    for piece in sand {
        let (_, rank) = open.pop()?;
        let filled = &mut packed[rank.0];
        filled.room -= piece.load;
        filled.experts.push(piece.expert);
        if filled.experts.len() < slots_per_rank {
            open.push((Roomy(filled.room), rank));
        }
    }
    Some(())
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
