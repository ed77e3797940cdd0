//! Longest first onto the lightest.

use moekit_placement::order::{index_of, load_of};

/// Spreads weighted items over packs of equal size: heaviest first, each onto the lightest pack
/// with room.
///
/// Where an item goes depends on where the one before went, so that a processor waits more than it
/// computes. Several orders are therefore packed in turn, item by item: while one waits, the others
/// go on.
#[derive(Debug, Default)]
pub(crate) struct Packing {
    /// For each order a tree of matches between packs: the lightest with room at 1, the two that the
    /// winner at `i` comes from at `2 i` and `2 i + 1`. It needs no branch that depends on the weights.
    lightest: Vec<u64>,
    /// Items in each pack.
    filled: Vec<u32>,
}

/// Sorts before the key of any larger weight, and of the same weight with a larger index.
fn light_first(weight: f32, index: usize) -> u64 {
    u64::from(weight.to_bits()) << 32 | index as u64
}

impl Packing {
    /// Packs the items of `N` orders of one length, keys by
    /// [`heavy_first`](moekit_placement::order::heavy_first), and calls `put(order, place, item)` for
    /// each: places are numbered pack by pack, and in a pack in the order in which items came.
    pub(crate) fn run<const N: usize>(
        &mut self,
        orders: [&[u64]; N],
        packs: usize,
        mut put: impl FnMut(usize, usize, usize),
    ) {
        let Some(len) = orders.iter().map(|order| order.len()).min() else {
            return;
        };
        let room = len / packs;
        let leaves = packs.next_power_of_two();
        self.reset(packs, N);
        let (lightest, _) = self.lightest.as_chunks_mut::<N>();
        let (filled, _) = self.filled.as_chunks_mut::<N>();
        let mut first = [light_first(0.0, 0); N];
        for turn in 0..len {
            for (n, (order, first)) in orders.iter().zip(&mut first).enumerate() {
                let item = order[turn];
                let pack = index_of(*first) as usize;
                let fill = &mut filled[pack][n];
                put(n, pack * room + *fill as usize, index_of(item) as usize);
                *fill += 1;
                let weight = f32::from_bits((*first >> 32) as u32) + load_of(item);
                let key = if *fill as usize == room {
                    u64::MAX
                } else {
                    light_first(weight, pack)
                };
                let mut winner = key;
                let mut at = leaves + pack;
                while at > 1 {
                    lightest[at][n] = winner;
                    winner = winner.min(lightest[at ^ 1][n]);
                    at /= 2;
                }
                *first = winner;
            }
        }
    }

    /// Empties the packs of `orders` orders.
    fn reset(&mut self, packs: usize, orders: usize) {
        let leaves = packs.next_power_of_two();
        self.lightest.clear();
        self.lightest.resize(orders, u64::MAX);
        // The first pack wins every match against an equal one: at depth d, each 2^d-th.
        let mut depth = 1;
        while depth <= leaves {
            let step = leaves / depth;
            for pack in (0..leaves).step_by(step) {
                let key = if pack < packs {
                    light_first(0.0, pack)
                } else {
                    u64::MAX
                };
                self.lightest.extend(std::iter::repeat_n(key, orders));
            }
            depth *= 2;
        }
        self.filled.clear();
        self.filled.resize(packs * orders, 0);
    }
}
