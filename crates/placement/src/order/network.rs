//! Many short lists sorted side by side, by one sequence of comparisons for all of them.

use super::{heavy_first, insertion_sort};

/// Lists that are sorted together: three vectors of four, so that what a comparison takes to set up is shared.
pub(super) const LANES: usize = 12;
/// Entries of a list at most: as many as the bits of an index tell apart.
pub(super) const LONGEST: usize = 1 << INDEX_BITS;
/// Bits at the end of a load that make room for the index.
const INDEX_BITS: u32 = 7;
const INDEX: u32 = (1 << INDEX_BITS) - 1;

/// Batcher's merge exchange (Knuth, The Art of Computer Programming, volume 3, algorithm 5.2.2 M).
///
/// The items are loads whose last bits are the index, counted down, so that a single minimum and maximum of
/// floats exchanges both. Loads that agree in all other bits may end up in the wrong order, which
/// is seen and mended.
#[derive(Clone, Debug, Default)]
pub(super) struct Network {
    /// Entries of a list.
    len: usize,
    /// What is compared in turn.
    pairs: Vec<[u8; 2]>,
    /// The items, `[LONGEST]` if there are any.
    items: Vec<[f32; LANES]>,
}

impl Network {
    /// Writes the keys of lists of `len` loads, sorted; both are `[lists, len]`.
    pub(super) fn sort(&mut self, loads: &[f32], len: usize, keys: &mut [u64]) {
        if self.len != len {
            self.len = len;
            self.pairs.clear();
            merge_exchange(len, |pair| self.pairs.push(pair));
        }
        self.items.resize(LONGEST, [0.0; LANES]);
        let Some(items) = self.items.first_chunk_mut() else {
            return;
        };
        for (lane, load) in loads.chunks_exact(len).enumerate() {
            for (index, (item, load)) in (0..).zip(items.iter_mut().zip(load)) {
                item[lane] = f32::from_bits((load.to_bits() | INDEX) - index);
            }
        }
        exchange(items, &self.pairs);
        let lists = loads.chunks_exact(len).zip(keys.chunks_exact_mut(len));
        for (lane, (load, keys)) in lists.enumerate() {
            let (mut last, mut sorted) = (0, true);
            for (key, item) in keys.iter_mut().zip(&*items) {
                let index = !item[lane].to_bits() & INDEX;
                *key = heavy_first(load[index as usize], index);
                sorted &= last <= *key;
                last = *key;
            }
            if !sorted {
                insertion_sort(keys);
            }
        }
    }
}

/// The larger item of each pair first, in all lanes.
fn exchange(items: &mut [[f32; LANES]; LONGEST], pairs: &[[u8; 2]]) {
    for pair in pairs {
        let [i, j] = pair.map(|at| at as usize % LONGEST);
        let (a, b) = (items[i], items[j]);
        items[i] = std::array::from_fn(|lane| if a[lane] > b[lane] { a[lane] } else { b[lane] });
        items[j] = std::array::from_fn(|lane| if a[lane] > b[lane] { b[lane] } else { a[lane] });
    }
}

/// What is compared in turn to sort `len` entries.
fn merge_exchange(len: usize, mut compare: impl FnMut([u8; 2])) {
    let top = len.next_power_of_two() / 2;
    let mut run = top;
    while run > 0 {
        let (mut merged, mut offset, mut distance) = (top, 0, run);
        loop {
            for start in (offset..len - distance.min(len)).step_by(2 * run) {
                for i in start..(start + run).min(len - distance) {
                    compare([i as u8, (i + distance) as u8]);
                }
            }
            if merged == run {
                break;
            }
            distance = merged - run;
            merged /= 2;
            offset = run;
        }
        run /= 2;
    }
}
