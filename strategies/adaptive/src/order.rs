//! The replicas of a layer, the heaviest first.

use crate::apportion::Apportionment;

/// The expert of every replica, by falling load per replica; of equal ones the first replicas of the
/// experts by index, then the others as they were given: the order of DeepSeek's code with a stable
/// sort.
///
/// Time: O(P log P).
pub(crate) fn longest_first(load: &[f32], given: &Apportionment) -> Vec<u32> {
    let first = 0..load.len() as u32;
    let experts = || first.clone().chain(given.extras.iter().copied());
    // Non-negative floats order as their bits do.
    let key = |(i, e): (u64, u32)| {
        let share = load[e as usize] / given.counts[e as usize] as f32;
        u64::from(!share.to_bits()) << 32 | i
    };
    let mut keys: Vec<u64> = (0..).zip(experts()).map(key).collect();
    keys.sort_unstable();
    let expert = |key: u64| {
        let i = key as u32;
        let extra = (i as usize).checked_sub(load.len());
        extra.map_or(i, |extra| given.extras[extra])
    };
    keys.into_iter().map(expert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_shares_keep_their_order() {
        let given = Apportionment {
            counts: vec![2, 1, 1, 2],
            extras: vec![3, 0],
            is_limited: false,
        };
        assert_eq!(
            longest_first(&[4.0, 2.0, 3.0, 4.0], &given),
            [2, 0, 1, 3, 3, 0]
        );
    }
}
