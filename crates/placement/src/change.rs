use moekit_routing::{LogicalExpert, Placement, Rank};
use serde::Serialize;

/// What one rank gains and loses when a placement takes another's place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct RankChange {
    /// The rank. It may exist in only one of the two placements.
    pub rank: Rank,
    /// Experts that it must receive, ascending.
    pub gained: Vec<LogicalExpert>,
    /// Experts that it no longer holds, ascending.
    pub lost: Vec<LogicalExpert>,
}

/// What changes from one placement of a layer to another.
///
/// ```
/// use moekit_placement::{Placement, PlacementChange};
///
/// let old = Placement::from_ranks(3, &[vec![0, 1], vec![2]])?;
/// let new = Placement::from_ranks(3, &[vec![1, 0], vec![2, 0]])?;
/// let change = PlacementChange::between(&old, &new);
/// assert_eq!(change.ranks.len(), 1, "the order within rank 0 is no change");
/// assert_eq!(change.slots_received(), 1);
/// # Ok::<(), moekit_placement::RoutingError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PlacementChange {
    /// The ranks that gain or lose anything, ascending.
    pub ranks: Vec<RankChange>,
}

impl PlacementChange {
    /// Compares what each rank holds.
    pub fn between(old: &Placement, new: &Placement) -> Self {
        let ranks = (0..old.num_ranks().max(new.num_ranks()))
            .map(Rank::new)
            .filter_map(|rank| {
                let (before, after) = (held(old, rank), held(new, rank));
                let minus = |a: &[LogicalExpert], b: &[LogicalExpert]| {
                    a.iter()
                        .filter(|e| b.binary_search(e).is_err())
                        .copied()
                        .collect::<Vec<_>>()
                };
                let (gained, lost) = (minus(&after, &before), minus(&before, &after));
                (!gained.is_empty() || !lost.is_empty()).then_some(RankChange {
                    rank,
                    gained,
                    lost,
                })
            })
            .collect();
        Self { ranks }
    }

    /// Whether every rank holds what it held.
    pub fn is_empty(&self) -> bool {
        self.ranks.is_empty()
    }

    /// How many experts travel to a rank that did not hold them.
    pub fn slots_received(&self) -> usize {
        self.ranks.iter().map(|r| r.gained.len()).sum()
    }
}

/// The distinct experts of a rank, ascending.
fn held(placement: &Placement, rank: Rank) -> Vec<LogicalExpert> {
    let mut experts = placement
        .experts_of(rank)
        .map(<[_]>::to_vec)
        .unwrap_or_default();
    experts.sort_unstable();
    experts.dedup();
    experts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_may_come_and_go() {
        let one = Placement::from_ranks(2, &[[0, 1]]).unwrap();
        let two = Placement::from_ranks(2, &[[0], [1]]).unwrap();
        let grow = PlacementChange::between(&one, &two);
        assert_eq!(grow.ranks[0].lost, [LogicalExpert::new(1)]);
        assert_eq!(grow.ranks[1].gained, [LogicalExpert::new(1)]);
        let shrink = PlacementChange::between(&two, &one);
        assert_eq!(shrink.ranks[1].lost, [LogicalExpert::new(1)]);
        assert!(PlacementChange::between(&one, &one).is_empty());
    }
}
