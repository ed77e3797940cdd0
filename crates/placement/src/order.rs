//! What a greedy strategy takes in turn: experts, replicas or groups, the heaviest first.
//!
//! A thing is one integer, its key: the bits of its load above, inverted, and its index below. Loads are
//! never negative, so that their bits are ordered as they are; ties fall to the lowest index by
//! themselves.
//!
//! ```
//! use moekit_placement::order::{HeaviestFirst, index_of};
//!
//! let mut order = HeaviestFirst::default();
//! let experts: Vec<u32> = order.sort(&[2.0, 5.0, 2.0]).iter().map(|&key| index_of(key)).collect();
//! assert_eq!(experts, [1, 0, 2]);
//! ```

mod network;

use network::{LANES, LONGEST, Network};

/// The loads in float32, times a power of two if the largest is far from 1, so that they stay in its range.
/// No negative zeros, whose bits are out of order.
pub fn single_precision(load: &[f64], to: &mut Vec<f32>) {
    let narrow = |scale: f64| load.iter().map(move |load| (load * scale) as f32 + 0.0);
    to.clear();
    to.extend(narrow(1.0));
    let largest = to.iter().map(|load| load.to_bits()).max();
    if largest.is_none_or(|bits| (1e-30..=1e30).contains(&f32::from_bits(bits))) {
        return;
    }
    let largest = load.iter().copied().fold(0.0, f64::max);
    if largest > 0.0 {
        to.clear();
        to.extend(narrow(
            (-largest.log2()).round().clamp(-1000.0, 1000.0).exp2(),
        ));
    }
}

/// Sorts before the key of any smaller load, and of the same load with a larger index. The load is not
/// negative, nor the negative zero.
#[inline]
pub fn heavy_first(load: f32, index: u32) -> u64 {
    u64::from(!load.to_bits()) << 32 | u64::from(index)
}

/// The index in a key.
#[inline]
pub fn index_of(key: u64) -> u32 {
    key as u32
}

/// The load in a key.
#[inline]
pub fn load_of(key: u64) -> f32 {
    f32::from_bits(!((key >> 32) as u32))
}

/// Sorts loads; keeps the memory that this takes.
#[derive(Clone, Debug, Default)]
pub struct HeaviestFirst {
    keys: Vec<u64>,
    scratch: Vec<u64>,
    network: Network,
}

/// Below, and above, comparing is faster than counting.
const COUNTED: std::ops::RangeInclusive<usize> = 128..=4096;
/// Bits of a digit.
const RADIX: u32 = 6;
/// Moves per key after which what counting left out of order is sorted by comparing all.
const MOST_MOVES: usize = 4;

impl HeaviestFirst {
    /// The keys of `load`, `[N]`, sorted: the heaviest first, of equal ones the lowest index.
    ///
    /// Time: O(N) for loads that are spread out, else O(N log N).
    pub fn sort(&mut self, load: &[f32]) -> &[u64] {
        self.sort_each(load, load.len())
    }

    /// The same for many lists at once.
    ///
    /// # Arguments
    ///
    /// - `loads` - `[lists, len]`; the result is of this shape too.
    /// - `len` - the length of a list, in which its indices count from 0.
    pub fn sort_each(&mut self, loads: &[f32], len: usize) -> &[u64] {
        let len = len.max(1);
        self.keys.resize(loads.len(), 0);
        let together = LANES * len;
        let keys = self.keys.chunks_mut(together);
        for (loads, keys) in loads.chunks(together).zip(keys) {
            if len <= LONGEST && loads.len() > together / 2 {
                self.network.sort(loads, len, keys);
                continue;
            }
            let keys = keys.chunks_exact_mut(len);
            for (load, keys) in loads.chunks_exact(len).zip(keys) {
                sort_one(load, &mut self.scratch, keys);
            }
        }
        &self.keys
    }

    /// The keys that were sorted last.
    pub fn into_keys(self) -> Vec<u64> {
        self.keys
    }
}

/// The sorted keys of loads, `[N]` as `keys`.
fn sort_one(load: &[f32], scratch: &mut Vec<u64>, keys: &mut [u64]) {
    if COUNTED.contains(&load.len()) {
        scratch.resize(load.len(), 0);
        count(load, scratch, keys);
        insertion_sort(keys);
        return;
    }
    for (index, (key, &load)) in keys.iter_mut().zip(load).enumerate() {
        *key = heavy_first(load, index as u32);
    }
    keys.sort_unstable();
}

/// The keys of loads, `[N]` as `scratch` and `keys`, sorted by the two highest digits of what tells loads apart.
/// Few loads agree in both.
fn count(load: &[f32], scratch: &mut [u64], keys: &mut [u64]) {
    const DIGITS: usize = 1 << RADIX;
    // Loads are not negative, so that their bits may be compared with signs, which is faster.
    let bits = || load.iter().map(|load| load.to_bits() as i32);
    let most = bits().max().unwrap_or_default() as u32;
    let least = bits().min().unwrap_or_default() as u32;
    let unused = (u32::BITS - (most - least).leading_zeros()).saturating_sub(2 * RADIX);
    let digits = |load: f32| {
        let rest = ((most - load.to_bits()) >> unused) as usize;
        [rest % DIGITS, rest / DIGITS % DIGITS]
    };
    let mut starts = [[0u32; DIGITS]; 2];
    for &load in load {
        let [low, high] = digits(load);
        starts[0][low] += 1;
        starts[1][high] += 1;
    }
    for starts in &mut starts {
        let mut next = 0;
        for start in starts {
            next += std::mem::replace(start, next);
        }
    }
    let [lows, highs] = &mut starts;
    for (index, &load) in (0..).zip(load) {
        let start = &mut lows[digits(load)[0]];
        scratch[*start as usize] = heavy_first(load, index);
        *start += 1;
    }
    for &key in &*scratch {
        let start = &mut highs[digits(load_of(key))[1]];
        keys[*start as usize] = key;
        *start += 1;
    }
}

/// Sorts what is nearly sorted; what takes too many moves is sorted as anything else.
fn insertion_sort(keys: &mut [u64]) {
    let mut moves = 0;
    for i in 1..keys.len() {
        let key = keys[i];
        let mut at = i;
        while at > 0 && keys[at - 1] > key {
            keys[at] = keys[at - 1];
            at -= 1;
        }
        if at < i {
            keys[at] = key;
            moves += i - at;
            if moves > MOST_MOVES * keys.len() {
                return keys.sort_unstable();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(load: &[f32]) {
        let mut keys: Vec<u64> = (0..)
            .zip(load)
            .map(|(index, &load)| heavy_first(load, index))
            .collect();
        keys.sort_unstable();
        assert_eq!(HeaviestFirst::default().sort(load), keys, "{load:?}");
    }

    #[test]
    fn loads_that_counting_cannot_tell_apart_are_sorted() {
        // All but one in one digit, against their order.
        let near = |i: u16| 1.0 + f32::from(i) * f32::EPSILON;
        let mut load: Vec<f32> = (0..500).map(near).collect();
        load.push(f32::INFINITY);
        check(&load);
        check(&[3.0; 100]);
        check(&[0.0; 100]);
    }

    #[test]
    fn loads_of_any_size_stay_in_range() {
        let mut single = Vec::new();
        for size in [1e-300, 1e-44, 1.0, 1e40, 1e300] {
            single_precision(&[size, 0.5 * size, -0.0], &mut single);
            assert!((1e-30..=1e30).contains(&single[0]), "{size:e}: {single:?}");
            assert_eq!((single[1] / single[0], single[2].to_bits()), (0.5, 0));
        }
        single_precision(&[0.0], &mut single);
        assert_eq!(single, [0.0]);
    }

    #[test]
    fn lists_are_sorted_one_by_one() {
        // Loads with ties, and loads that only their last bits tell apart.
        let spread = |i: usize| (i * 37 % 101) as f32;
        let close = |i: usize| 1.0 + spread(i) * f32::EPSILON;
        for (len, load) in [1, 3, 72, 127, 128, 150].into_iter().flat_map(|len| {
            let loads = [&spread as &dyn Fn(usize) -> f32, &close];
            loads.map(|load| (len, (0..19 * len).map(load).collect::<Vec<f32>>()))
        }) {
            let mut order = HeaviestFirst::default();
            order.sort(&[1.0; 2000]);
            let lists = load.chunks(len);
            let each: Vec<u64> = lists
                .flat_map(|list| HeaviestFirst::default().sort(list).to_vec())
                .collect();
            assert_eq!(order.sort_each(&load, len), each);
        }
        assert!(HeaviestFirst::default().sort_each(&[], 0).is_empty());
    }

    #[test]
    fn a_key_tells_its_load() {
        let key = heavy_first(1.5, 7);
        assert_eq!((load_of(key), index_of(key)), (1.5, 7));
    }

    proptest! {
        #[test]
        fn any_loads_are_sorted(
            load in prop::collection::vec(prop_oneof![0f32..1.0, 0f32..1e30, (0u8..9).prop_map(f32::from)], 0..300),
        ) {
            check(&load);
        }
    }
}
