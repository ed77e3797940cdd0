use std::cmp::Ordering;
use std::collections::BinaryHeap;

use serde::Serialize;

use crate::balance::mean_speed;
use crate::{ExpertLoad, PlacementError};

/// A lower bound of the largest rank load of a layer, and what follows for its balance.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LoadBound {
    /// No placement has a smaller largest rank load.
    pub max_load: f64,
    /// No placement has a better balancedness; 1 without load.
    pub balancedness: f64,
}

/// Bounds the largest rank load of a layer over all placements in these slots.
///
/// The larger of two bounds, each exact for what it looks at: the mean over the ranks that have
/// slots, and the largest load per replica under the best apportionment of the slots to experts
/// (one each, then always to the largest load per replica, which minimizes the maximum). An expert
/// gains nothing from more replicas than there are ranks with slots. Since some replica of an expert
/// with `c` slots gets at least a `c`-th of its load, this holds for uneven splits too.
///
/// Time: O(slots log experts).
///
/// ```
/// use moekit_placement::bound::load_bound;
///
/// // One expert with most of the load: two ranks with two slots each cannot share three experts evenly.
/// let bound = load_bound(&[9.0, 2.0, 1.0], &[2, 2])?;
/// assert_eq!(bound.max_load, 6.0);
/// assert_eq!(bound.balancedness, 1.0);
/// // Without a spare slot the hot expert stays whole.
/// assert_eq!(load_bound(&[9.0, 2.0, 1.0], &[2, 1])?.max_load, 9.0);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
///
/// # Arguments
///
/// - `load` - tokens per logical expert, `[E]`.
/// - `slots_per_rank` - `[R]`.
///
/// # Errors
///
/// If a load is not a finite number of tokens, or the slots do not hold all experts.
pub fn load_bound(load: &[f64], slots_per_rank: &[usize]) -> Result<LoadBound, PlacementError> {
    load_bound_at_speeds(load, slots_per_rank, &[])
}

/// As [`load_bound`], of ranks of different speeds: loads count as those that a rank of mean speed would take
/// as long for ([`LayerBalance::at_speeds`](crate::balance::LayerBalance::at_speeds)).
///
/// The larger of the time that all ranks with slots need together and that of the largest replica on
/// the fastest of them.
///
/// ```
/// use moekit_placement::bound::load_bound_at_speeds;
///
/// let bound = load_bound_at_speeds(&[6.0, 2.0, 1.0], &[2, 2], &[2.0, 1.0])?;
/// assert_eq!(bound.max_load, 4.5, "6 on the fast rank, 3 on the slow one");
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
///
/// # Arguments
///
/// - `speeds` - `[R]`, relative to each other; empty if all are alike.
///
/// # Errors
///
/// As [`load_bound`].
pub fn load_bound_at_speeds(
    load: &[f64],
    slots_per_rank: &[usize],
    speeds: &[f64],
) -> Result<LoadBound, PlacementError> {
    ExpertLoad::from_rows(&[load])?;
    let num_slots = slots_per_rank
        .iter()
        .fold(0, |sum: usize, &n| sum.saturating_add(n));
    if num_slots < load.len() {
        return Err(PlacementError::TooFewSlots {
            num_slots,
            num_experts: load.len(),
        });
    }
    let mean_speed = mean_speed(speeds);
    let live = (0..slots_per_rank.len()).filter(|&rank| slots_per_rank[rank] > 0);
    let live_speeds = live.map(|rank| speeds.get(rank).copied().unwrap_or(mean_speed));
    let (ranks, speed, fastest) = live_speeds.fold((0, 0.0, 0.0_f64), |(n, sum, most), speed| {
        (n + 1, sum + speed, most.max(speed))
    });
    let total: f64 = load.iter().sum();
    let together = total / (speed / mean_speed);
    let alone = largest_replica(load, num_slots - load.len(), ranks) / (fastest / mean_speed);
    let max_load = together.max(alone);
    let mean = total / slots_per_rank.len() as f64;
    Ok(LoadBound {
        max_load,
        balancedness: if max_load > 0.0 { mean / max_load } else { 1.0 },
    })
}

/// The least possible largest load per replica with `spare` slots beyond one per expert.
fn largest_replica(load: &[f64], spare: usize, max_replicas: usize) -> f64 {
    let whole = |(expert, &load): (usize, &f64)| Share {
        load,
        expert,
        replicas: 1,
    };
    let mut shares: BinaryHeap<Share> = load.iter().enumerate().map(whole).collect();
    for _ in 0..spare {
        let Some(mut top) = shares.peek_mut() else {
            break;
        };
        // No further replica can make the largest share smaller.
        if top.replicas >= max_replicas || top.load <= 0.0 {
            break;
        }
        top.replicas += 1;
        top.load = load[top.expert] / top.replicas as f64;
    }
    shares.peek().map_or(0.0, |top| top.load)
}

/// An expert's load per replica; the largest first, ties to the lowest expert.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Share {
    load: f64,
    expert: usize,
    replicas: usize,
}

impl Eq for Share {}

impl Ord for Share {
    fn cmp(&self, other: &Self) -> Ordering {
        self.load
            .total_cmp(&other.load)
            .then(other.expert.cmp(&self.expert))
    }
}

impl PartialOrd for Share {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::balance::rank_loads;
    use moekit_routing::Placement;

    #[test]
    fn dead_ranks_carry_nothing() {
        let bound = load_bound(&[4.0, 4.0], &[1, 0, 1]).unwrap();
        assert_eq!((bound.max_load, bound.balancedness), (4.0, 8.0 / 3.0 / 4.0));
    }

    #[test]
    fn one_expert_with_everything_needs_every_rank() {
        assert_eq!(load_bound(&[12.0, 0.0], &[2, 2, 2]).unwrap().max_load, 4.0);
        assert_eq!(load_bound(&[12.0, 0.0], &[2, 1]).unwrap().max_load, 6.0);
        assert_eq!(load_bound(&[0.0, 0.0], &[2, 1]).unwrap().balancedness, 1.0);
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(load_bound(&[f64::NAN], &[1]).is_err());
        assert!(load_bound(&[1.0, 2.0], &[1]).is_err());
        assert!(load_bound(&[], &[1]).is_err());
    }

    proptest! {
        #[test]
        fn no_placement_beats_it(
            load in prop::collection::vec(0.0f64..100.0, 1..6),
            extra in prop::collection::vec(0usize..6, 0..6),
            cuts in prop::collection::vec(0usize..12, 0..3),
        ) {
            let mut slots: Vec<usize> = extra.iter().map(|e| e % load.len()).collect();
            slots.extend(0..load.len());
            let mut offsets: Vec<usize> = cuts.iter().map(|c| c % (slots.len() + 1)).collect();
            offsets.extend([0, slots.len()]);
            offsets.sort_unstable();
            let per_rank: Vec<usize> = offsets.windows(2).map(|w| w[1] - w[0]).collect();
            let placement = Placement::new(load.len(), slots, offsets).unwrap();
            let busiest = rank_loads(&placement, &load).unwrap().into_iter().fold(0.0, f64::max);
            let bound = load_bound(&load, &per_rank).unwrap();
            prop_assert!(bound.max_load <= busiest * (1.0 + 1e-12), "{bound:?} {busiest}");
        }
    }
}
