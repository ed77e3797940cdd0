//! How many replicas each expert gets.

use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

/// Replicas of each expert.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Apportionment {
    /// `[E]`, each at least 1.
    pub(crate) counts: Vec<u32>,
    /// The expert of each replica beyond the first, in the order in which they were given.
    pub(crate) extras: Vec<u32>,
    /// Whether an expert got fewer than its load calls for.
    pub(crate) is_limited: bool,
}

/// One replica each, then always one more for the expert with the largest load per replica, ties to
/// the lowest index: of all apportionments the one with the smallest largest replica. No expert gets
/// more than `most`.
///
/// In float32, as DeepSeek's code computes it.
///
/// Time: O(E + spare slots log E).
pub(crate) fn apportion(load: &[f32], num_slots: usize, most: usize) -> Apportionment {
    let mut counts = vec![1; load.len()];
    let mut extras = Vec::with_capacity(num_slots.saturating_sub(load.len()));
    let mut is_limited = most <= 1;
    if is_limited {
        return Apportionment {
            counts,
            extras,
            is_limited,
        };
    }
    // Non-negative floats order as their bits do.
    let key = |share: f32, e: u32| u64::from(share.to_bits()) << 32 | u64::from(!e);
    let mut heap: BinaryHeap<u64> = (0..).zip(load).map(|(e, &load)| key(load, e)).collect();
    for _ in load.len()..num_slots {
        let Some(mut top) = heap.peek_mut() else {
            break;
        };
        let expert = !(*top as u32);
        let count = &mut counts[expert as usize];
        *count += 1;
        extras.push(expert);
        if (*count as usize) < most {
            *top = key(load[expert as usize] / *count as f32, expert);
        } else {
            PeekMut::pop(top);
            is_limited = true;
        }
    }
    Apportionment {
        counts,
        extras,
        is_limited,
    }
}

/// An apportionment that holds back `reserve` of the spare slots from the experts with the largest
/// replicas, and gives them to those that still have one replica, the heaviest first: fewer
/// large pieces, and more small ones that fit beside them. Slots may be left over.
pub(crate) fn apportion_with_reserve(
    load: &[f32],
    num_slots: usize,
    most: usize,
    reserve: usize,
) -> Apportionment {
    let mut given = apportion(load, num_slots - reserve, most);
    let mut single: Vec<u32> = (0..load.len() as u32)
        .filter(|&e| given.counts[e as usize] == 1 && most > 1)
        .collect();
    single.sort_by(|&a, &b| load[b as usize].total_cmp(&load[a as usize]));
    single.truncate(num_slots - load.len() - given.extras.len());
    for &expert in &single {
        given.counts[expert as usize] += 1;
    }
    given.extras.extend(single);
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_share_gets_the_next_replica() {
        let given = apportion(&[2.0, 2.0, 1.0], 6, 9);
        assert_eq!((given.counts, given.extras), (vec![3, 2, 1], vec![0, 1, 0]));
        assert_eq!(apportion(&[8.0, 1.0], 4, 2).counts, [2, 2]);
        assert_eq!(apportion(&[8.0, 1.0], 4, 1).counts, [1, 1]);
    }

    #[test]
    fn a_reserve_goes_to_experts_without_a_second_replica() {
        let load = [600., 560., 120., 120., 20., 10., 10., 10.];
        assert_eq!(apportion(&load, 16, 8).counts, [5, 5, 1, 1, 1, 1, 1, 1]);
        let given = apportion_with_reserve(&load, 16, 8, 3);
        assert_eq!(given.counts, [4, 3, 2, 2, 2, 1, 1, 1]);
        assert_eq!(given.extras.len(), 8);
    }
}
