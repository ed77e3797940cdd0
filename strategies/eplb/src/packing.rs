//! Longest first onto the lightest.

use moekit_placement::order::{HeaviestFirst, index_of, load_of};

use crate::tournament::{Games, Tournaments, lists, lists_mut, play_all, replace};

/// Spreads weighted items over packs of equal size: heaviest first, each onto the lightest pack
/// with room.
#[derive(Debug)]
pub(crate) struct Packing {
    packs: usize,
    /// The places of all packs, pack by pack.
    places: Vec<Place>,
    sorted: HeaviestFirst,
    /// A tournament between the packs.
    tournaments: Tournaments,
}

impl Packing {
    /// # Arguments
    ///
    /// - `len` - the items that are packed.
    /// - `packs` - the packs, each of which takes equally many.
    pub(crate) fn new(len: usize, packs: usize) -> Self {
        let room = len / packs;
        let place = |at| Place {
            pack: (at / room) as u32,
            full: u32::from((at + 1) % room == 0) << 31,
        };
        Self {
            packs,
            places: (0..len).map(place).collect(),
            sorted: HeaviestFirst::default(),
            tournaments: Tournaments::new(packs),
        }
    }

    /// Packs lists of items, all `[lists, len]`. Packs of one item take the items in their order.
    ///
    /// # Arguments
    ///
    /// - `loads` - of the items.
    /// - `names` - what is written for each item.
    /// - `packed` - where: pack by pack, and in a pack in the order in which items came.
    pub(crate) fn run(&mut self, loads: &[f32], names: &[u32], packed: &mut [u32]) {
        let (packs, places) = (self.packs, &self.places[..]);
        let len = places.len();
        if packs == len {
            packed.copy_from_slice(names);
            return;
        }
        let mut orders = Orders {
            packs,
            places,
            items: self.sorted.sort_each(loads, len),
            names,
            packed,
        };
        self.tournaments.play(&mut orders, loads.len() / len);
    }
}

/// A place of a pack.
#[derive(Clone, Copy, Debug)]
struct Place {
    pack: u32,
    /// Of the last one the sign, so that a full pack comes after all others.
    full: u32,
}

/// Lists of items that are being packed.
struct Orders<'a> {
    packs: usize,
    places: &'a [Place],
    /// The keys of items, sorted.
    items: &'a [u64],
    names: &'a [u32],
    packed: &'a mut [u32],
}

impl Games for Orders<'_> {
    #[inline(always)]
    fn play<const N: usize>(&mut self, trees: [&mut [u64]; N], first: usize) {
        let (packs, len) = (self.packs, self.places.len());
        let room = len / packs;
        let items = lists::<_, N>(self.items, len, first);
        let names = lists::<_, N>(self.names, len, first);
        let packed = lists_mut::<_, N>(self.packed, len, first);
        // Puts an item onto the pack of a key. The pack, and its key then.
        let mut put = |list: usize, turn: usize, lightest: u64| {
            let (item, at) = (items[list][turn], index_of(lightest));
            packed[list][at as usize] = names[list][index_of(item) as usize];
            let weight = f32::from_bits((lightest >> 32) as u32) + load_of(item);
            let Place { pack, full } = self.places[at as usize];
            (pack as usize, light_first(weight, full, at + 1))
        };
        let empty = |pack| light_first(0.0, 0, (pack * room) as u32);
        let mut lightest = [0; N];
        for list in 0..N {
            let tree = &mut *trees[list];
            if load_of(items[list][packs - 1]) > 0.0 {
                // An empty pack is lighter than one with an item.
                let keys = (0..packs).map(|pack| put(list, pack, empty(pack)).1);
                lightest[list] = play_all(tree, keys);
            } else {
                lightest[list] = play_all(tree, (0..packs).map(empty));
                for turn in 0..packs {
                    let (pack, key) = put(list, turn, lightest[list]);
                    lightest[list] = replace(tree, pack, key);
                }
            }
        }
        for turn in packs..len {
            for list in 0..N {
                let (pack, key) = put(list, turn, lightest[list]);
                lightest[list] = replace(trees[list], pack, key);
            }
        }
    }
}

/// Sorts before the key of any larger weight, and of the same weight with a later place.
#[inline(always)]
fn light_first(weight: f32, full: u32, place: u32) -> u64 {
    u64::from(weight.to_bits() | full) << 32 | u64::from(place)
}
