//! Experts and replicas, the heaviest first.

use moekit_placement::order::HeaviestFirst;
pub(crate) use moekit_placement::order::{heavy_first, index_of};

use crate::apportion::Apportionment;

/// The loads in float32, in its range.
pub(crate) fn single_precision(load: &[f64]) -> Vec<f32> {
    let mut single = Vec::new();
    moekit_placement::order::single_precision(load, &mut single);
    single
}

/// The keys of all experts, sorted.
///
/// Time: O(E) for loads that are spread out, else O(E log E).
pub(crate) fn experts(load: &[f32]) -> Vec<u64> {
    let mut order = HeaviestFirst::default();
    order.sort(load);
    order.into_keys()
}

/// The expert of every replica, by falling load per replica; of equal ones the first replicas of the
/// experts by index, then the others as they were given: the order of DeepSeek's code with a stable
/// sort.
///
/// Experts with several replicas are the heaviest ones, so that the others are in order already.
///
/// Time: O(P + r log r) for r replicas of experts that have several.
///
/// # Arguments
///
/// - `sorted` - the keys of all experts.
pub(crate) fn longest_first(load: &[f32], sorted: &[u64], given: &Apportionment) -> Vec<u32> {
    let (several, single) = sorted.split_at(given.num_several);
    let share = |e: u32| load[e as usize] / given.counts[e as usize] as f32;
    let first = several.iter().map(|&key| (index_of(key), index_of(key)));
    let more = (load.len() as u32..).zip(given.extras.iter().copied());
    let mut shared: Vec<u64> = first
        .chain(more)
        .map(|(replica, expert)| heavy_first(share(expert), replica))
        .collect();
    shared.sort_unstable();
    let mut order = Vec::with_capacity(load.len() + given.extras.len());
    let mut single = single.iter().copied().peekable();
    for &key in &shared {
        while let Some(single) = single.next_if(|&single| single < key) {
            order.push(index_of(single));
        }
        let replica = index_of(key);
        let extra = (replica as usize).checked_sub(load.len());
        order.push(extra.map_or(replica, |extra| given.extras[extra]));
    }
    order.extend(single.map(index_of));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_keep_their_order() {
        let given = Apportionment {
            counts: vec![2, 1, 1, 2],
            extras: vec![3, 0],
            num_several: 2,
            is_limited: false,
        };
        let load = [4.0, 2.0, 3.0, 4.0];
        assert_eq!(
            longest_first(&load, &experts(&load), &given),
            [2, 0, 1, 3, 3, 0]
        );
    }
}
