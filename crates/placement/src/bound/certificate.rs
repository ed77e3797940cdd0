use moekit_routing::{Placement, Rank};

use super::flow::Network;
use crate::PlacementError;

/// The least that the busiest rank can carry in a step, over all splits of the tokens to replicas.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct SplitOptimum {
    /// Tokens of the experts that sit on [`ranks`](Self::ranks) only.
    pub tokens: u64,
    /// The ranks that must share them: the certificate, ascending.
    pub ranks: Vec<Rank>,
    /// A split in whole tokens that reaches [`largest`](Self::largest): tokens of each slot, `[P]`.
    pub split: Vec<u64>,
}

impl SplitOptimum {
    /// The optimum over fractional splits: the certificate's tokens per rank.
    pub fn level(&self) -> f64 {
        self.tokens as f64 / self.ranks.len().max(1) as f64
    }

    /// The optimum over splits in whole tokens.
    pub fn largest(&self) -> u64 {
        self.tokens.div_ceil(self.ranks.len().max(1) as u64)
    }
}

/// The optimal split of one step's tokens over the replicas of a placement.
///
/// By max-flow and min-cut the optimum is `max over sets A of ranks: tokens confined to A / |A|`,
/// where an expert is confined to `A` if all its replicas sit there. The set is found by Dinkelbach's
/// method: guess a level, let Dinic's algorithm find a set that violates it, take that set's level
/// as the next guess. Levels grow strictly, so it ends; in practice after two to five rounds.
///
/// ```
/// use moekit_placement::{Placement, bound::optimal_split};
///
/// // Expert 0 is on both ranks; rank 1 must carry expert 2 as well.
/// let placement = Placement::from_ranks(3, &[[0, 1], [0, 2]])?;
/// let optimum = optimal_split(&placement, &[4, 1, 3])?;
/// assert_eq!((optimum.largest(), optimum.split), (4, vec![3, 1, 1, 3]));
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
///
/// # Arguments
///
/// - `counts` - tokens per logical expert, `[E]`.
///
/// # Errors
///
/// If there is not one count per expert, or tokens times ranks exceed 2^62.
pub fn optimal_split(
    placement: &Placement,
    counts: &[u64],
) -> Result<SplitOptimum, PlacementError> {
    if counts.len() != placement.num_logical_experts() {
        return Err(PlacementError::Shape {
            what: "number of token counts".to_owned(),
            got: counts.len(),
            expected: placement.num_logical_experts(),
        });
    }
    let ranks = placement.num_ranks() as u128;
    let total: u128 = counts.iter().map(|&count| u128::from(count)).sum();
    if total * (ranks + 1) > 1 << 62 {
        return Err(PlacementError::Shape {
            what: format!("tokens of a step on {ranks} ranks (at most)"),
            got: usize::try_from(total).unwrap_or(usize::MAX),
            expected: usize::try_from((1u128 << 62) / (ranks + 1)).unwrap_or(usize::MAX),
        });
    }

    let mut network = Network::new(placement, counts);
    let mut set = network.live_ranks();
    let mut tokens = counts.iter().sum();
    // A single rank's own experts are often the tightest set; a good first guess saves flows.
    for (rank, own) in network.fixed_tokens() {
        if own * set.len() as u64 > tokens {
            (tokens, set) = (own, vec![rank]);
        }
    }
    while let Some(violated) = network.violated(tokens, set.len() as u64) {
        tokens = network.confined(&violated);
        set = violated;
    }
    // At the level rounded up, the flow itself is a split in whole tokens.
    let level = tokens.div_ceil(set.len().max(1) as u64);
    network.violated(level, 1);
    Ok(SplitOptimum {
        tokens,
        ranks: set.into_iter().map(Rank::new).collect(),
        split: network.split(placement, counts),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn loads(placement: &Placement, split: &[u64]) -> Vec<u64> {
        placement
            .rank_offsets()
            .windows(2)
            .map(|w| split[w[0]..w[1]].iter().sum())
            .collect()
    }

    /// The formula itself, over all sets of ranks with slots.
    fn brute_force(placement: &Placement, counts: &[u64]) -> f64 {
        let ranks = placement.num_ranks();
        let holders: Vec<u32> = (0..counts.len())
            .map(|e| {
                (0..ranks)
                    .filter(|&r| {
                        placement
                            .experts_of(Rank::new(r))
                            .unwrap()
                            .iter()
                            .any(|x| x.index() == e)
                    })
                    .fold(0, |set, r| set | 1 << r)
            })
            .collect();
        (1u32..1 << ranks)
            .map(|set| {
                let inside = holders.iter().zip(counts).filter(|(h, _)| **h & !set == 0);
                inside.map(|(_, &count)| count).sum::<u64>() as f64 / f64::from(set.count_ones())
            })
            .fold(0.0, f64::max)
    }

    proptest! {
        #[test]
        fn it_is_the_optimum_and_the_split_reaches_it(
            ranks in prop::collection::vec(prop::collection::vec(0usize..7, 1..5), 1..6),
            counts in prop::collection::vec(0u64..50, 7),
        ) {
            let mut ranks = ranks;
            (0..7).for_each(|e| { let r = e % ranks.len(); ranks[r].push(e) });
            let placement = Placement::from_ranks(7, &ranks).unwrap();
            let optimum = optimal_split(&placement, &counts).unwrap();
            prop_assert!((optimum.level() - brute_force(&placement, &counts)).abs() < 1e-9);
            let largest = loads(&placement, &optimum.split).into_iter().max().unwrap();
            prop_assert_eq!(largest, optimum.largest());
            for (expert, &count) in counts.iter().enumerate() {
                let slots = placement.physical_to_logical().iter().zip(&optimum.split);
                let sum: u64 = slots.filter(|(e, _)| e.index() == expert).map(|(_, &n)| n).sum();
                prop_assert_eq!(sum, count);
            }
        }
    }

    #[test]
    fn ranks_without_slots_carry_nothing() {
        let placement = Placement::from_ranks(2, &[vec![0], vec![], vec![1, 0]]).unwrap();
        let optimum = optimal_split(&placement, &[6, 2]).unwrap();
        assert_eq!((optimum.largest(), optimum.ranks.len()), (4, 2));
    }

    #[test]
    fn nonsense_is_refused() {
        let placement = Placement::from_ranks(1, &[[0]]).unwrap();
        assert!(optimal_split(&placement, &[1, 2]).is_err());
        assert!(optimal_split(&placement, &[u64::MAX]).is_err());
        assert_eq!(optimal_split(&placement, &[0]).unwrap().largest(), 0);
    }
}
