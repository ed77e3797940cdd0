//! How many replicas each expert gets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use crate::order::{heavy_first, index_of};

/// Replicas of each expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apportionment {
    /// `[E]`, each at least 1.
    pub(crate) counts: Vec<u32>,
    /// The expert of each replica beyond the first, in the order in which they were given.
    pub(crate) extras: Vec<u32>,
    /// How many experts have several replicas: the heaviest ones.
    pub(crate) num_several: usize,
    /// Whether an expert got fewer than its load calls for.
    pub(crate) is_limited: bool,
}

/// One replica each, then always one more for the expert with the largest load per replica, ties to
/// the lowest index: of all apportionments the one with the smallest largest replica. No expert gets
/// more than `most`.
///
/// In float32, as DeepSeek's code computes it.
///
/// Time: O(E + spare slots log spare slots).
///
/// # Arguments
///
/// - `sorted` - the keys of all experts ([`experts`](crate::order::experts)).
pub(crate) fn apportion(
    load: &[f32],
    sorted: &[u64],
    num_slots: usize,
    most: usize,
) -> Apportionment {
    let mut given = Apportionment {
        counts: vec![1; load.len()],
        extras: Vec::with_capacity(num_slots.saturating_sub(load.len())),
        num_several: 0,
        is_limited: most <= 1,
    };
    if given.is_limited {
        return given;
    }
    // The smallest key first.
    let mut several: BinaryHeap<Reverse<u64>> = BinaryHeap::new();
    for _ in load.len()..num_slots {
        // The busiest is either the heaviest expert with one replica or one with several.
        let single = sorted.get(given.num_several).copied();
        let shared = several.peek().map(|key| key.0);
        let is_single = single.is_some_and(|single| shared.is_none_or(|key| single < key));
        let Some(key) = (if is_single { single } else { shared }) else {
            break;
        };
        let expert = index_of(key);
        let count = &mut given.counts[expert as usize];
        *count += 1;
        given.extras.push(expert);
        let next = heavy_first(load[expert as usize] / *count as f32, expert);
        let may_grow = (*count as usize) < most;
        given.is_limited |= !may_grow;
        if is_single {
            given.num_several += 1;
            if may_grow {
                several.push(Reverse(next));
            }
        } else if let Some(mut top) = several.peek_mut() {
            if may_grow {
                top.0 = next;
            } else {
                PeekMut::pop(top);
            }
        }
    }
    given
}

/// An apportionment that holds back `reserve` of the spare slots from the experts with the largest
/// replicas, and gives them to those that still have one replica, the heaviest first: fewer
/// large pieces, and more small ones that fit beside them. Slots may be left over.
pub(crate) fn apportion_with_reserve(
    load: &[f32],
    sorted: &[u64],
    num_slots: usize,
    most: usize,
    reserve: usize,
) -> Apportionment {
    let mut given = apportion(load, sorted, num_slots - reserve, most);
    if most > 1 {
        let left = num_slots - load.len() - given.extras.len();
        for &key in sorted[given.num_several..].iter().take(left) {
            let expert = index_of(key);
            given.counts[expert as usize] += 1;
            given.extras.push(expert);
            given.num_several += 1;
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::order::experts;

    fn given(load: &[f32], num_slots: usize, most: usize) -> Apportionment {
        apportion(load, &experts(load), num_slots, most)
    }

    #[test]
    fn the_largest_share_gets_the_next_replica() {
        let three = given(&[2.0, 2.0, 1.0], 6, 9);
        assert_eq!((three.counts, three.extras), (vec![3, 2, 1], vec![0, 1, 0]));
        let limited = given(&[8.0, 1.0], 4, 2);
        assert_eq!((limited.counts, limited.is_limited), (vec![2, 2], true));
        assert_eq!(given(&[8.0, 1.0], 4, 1).counts, [1, 1]);
        assert_eq!(given(&[8.0, 1.0], 9, 2).counts, [2, 2]);
    }

    #[test]
    fn a_reserve_goes_to_experts_without_a_second_replica() {
        let load = [600., 560., 120., 120., 20., 10., 10., 10.];
        assert_eq!(given(&load, 16, 8).counts, [5, 5, 1, 1, 1, 1, 1, 1]);
        let reserved = apportion_with_reserve(&load, &experts(&load), 16, 8, 3);
        assert_eq!(reserved.counts, [4, 3, 2, 2, 2, 1, 1, 1]);
        assert_eq!((reserved.extras.len(), reserved.num_several), (8, 5));
    }
}
