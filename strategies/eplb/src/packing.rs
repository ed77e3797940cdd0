//! Longest first onto the lightest.

use moekit_placement::order::{index_of, load_of};

use crate::tournament::{Game, Tournaments, play_all, replace};

/// Spreads weighted items over packs of equal size: heaviest first, each onto the lightest pack
/// with room.
#[derive(Debug)]
pub(crate) struct Packing {
    /// Items of an order.
    len: usize,
    places: Places,
    /// A tournament between the packs.
    tournaments: Tournaments,
    /// One in which all packs are empty.
    empty: Vec<u64>,
}

impl Packing {
    /// # Arguments
    ///
    /// - `len` - the items of an order.
    /// - `packs` - the packs, each of which takes equally many.
    pub(crate) fn new(len: usize, packs: usize) -> Self {
        let places = Places::new(len / packs);
        let tournaments = Tournaments::new(packs);
        let mut empty = vec![u64::MAX; tournaments.size()];
        let keys = (0..packs).map(|pack| light_first(0.0, places.first(pack)));
        play_all(&mut empty, keys);
        Self {
            len,
            places,
            tournaments,
            empty,
        }
    }

    /// Packs orders of items, all `[orders, len]`.
    ///
    /// # Arguments
    ///
    /// - `items` - keys by [`heavy_first`](moekit_placement::order::heavy_first), sorted.
    /// - `names` - what is written for each item.
    /// - `packed` - where: pack by pack, and in a pack in the order in which items came.
    pub(crate) fn run(&mut self, items: &[u64], names: &[u32], packed: &mut [u32]) {
        let (len, places, empty) = (self.len, self.places, &self.empty[..]);
        let orders = items.chunks_exact(len).zip(names.chunks_exact(len));
        let orders = orders.zip(packed.chunks_exact_mut(len));
        let orders = orders.map(|((items, names), packed)| Order {
            empty,
            places,
            lightest: 0,
            items,
            names,
            packed,
        });
        self.tournaments.play(orders, 0..len);
    }
}

/// An order that is being packed.
struct Order<'a> {
    /// A tournament between empty packs.
    empty: &'a [u64],
    places: Places,
    /// The key of the lightest pack.
    lightest: u64,
    items: &'a [u64],
    names: &'a [u32],
    packed: &'a mut [u32],
}

impl Game for Order<'_> {
    #[inline(always)]
    fn begin(&mut self, tree: &mut [u64]) {
        tree.copy_from_slice(self.empty);
        self.lightest = tree[1];
    }

    /// Puts an item onto the lightest pack.
    #[inline(always)]
    fn turn(&mut self, tree: &mut [u64], turn: usize) {
        let item = self.items[turn];
        let place = index_of(self.lightest);
        let pack = self.places.pack(place);
        self.packed[self.places.position(place)] = self.names[index_of(item) as usize];
        let weight = f32::from_bits((self.lightest >> 32) as u32) + load_of(item);
        let key = light_first(weight, place + 1) | self.places.full(place + 1);
        self.lightest = replace(tree, pack, key);
    }
}

/// Sorts before the key of any larger weight, and of the same weight with a later place.
#[inline(always)]
fn light_first(weight: f32, place: u32) -> u64 {
    u64::from(weight.to_bits()) << 32 | u64::from(place)
}

/// The place that is next in a pack, as its key has it: the pack above, and below what is taken of it, counted so
/// that the bits overflow when it is full.
#[derive(Clone, Copy, Debug)]
struct Places {
    /// Bits of a place in a pack.
    bits: u32,
    /// Where they begin to count.
    unused: u32,
}

impl Places {
    fn new(room: usize) -> Self {
        let bits = room.next_power_of_two().ilog2();
        Self {
            bits,
            unused: (1 << bits) - room as u32,
        }
    }

    fn first(self, pack: usize) -> u32 {
        (pack as u32) << self.bits | self.unused
    }

    #[inline(always)]
    fn pack(self, place: u32) -> usize {
        (place >> self.bits) as usize
    }

    /// Counted without what is unused.
    #[inline(always)]
    fn position(self, place: u32) -> usize {
        (place - ((place >> self.bits) + 1) * self.unused) as usize
    }

    /// What is set in the key of a full pack: the sign of its weight, so that it comes after all others.
    #[inline(always)]
    fn full(self, next: u32) -> u64 {
        u64::from(next & ((1 << self.bits) - 1) == 0) << 63
    }
}
