//! The ranks among which experts move.

use moekit_routing::{Placement, Rank, RoutingError, Topology};

use super::plan::Link;
use crate::PlacementError;

/// The ranks of a topology, some of them lost.
pub(super) struct Group<'a> {
    topology: &'a Topology,
    lost: &'a [bool],
    nodes: Vec<usize>,
}

impl<'a> Group<'a> {
    pub(super) fn new(topology: &'a Topology, lost: &'a [bool]) -> Self {
        let nodes = (0..topology.num_nodes())
            .flat_map(|node| {
                let ranks = topology.ranks_of(node).unwrap_or_default();
                std::iter::repeat_n(node, ranks.len())
            })
            .collect();
        Self {
            topology,
            lost,
            nodes,
        }
    }

    pub(super) fn num_ranks(&self) -> usize {
        self.topology.num_ranks()
    }

    pub(super) fn is_lost(&self, rank: usize) -> bool {
        self.lost.get(rank) == Some(&true)
    }

    /// The ranks that are not lost, ascending.
    pub(super) fn living(&self) -> impl Iterator<Item = Rank> {
        (0..self.num_ranks())
            .filter(|&rank| !self.is_lost(rank))
            .map(Rank::new)
    }

    pub(super) fn link(&self, a: Rank, b: Rank) -> Link {
        if self.nodes.get(a.index()) == self.nodes.get(b.index()) {
            Link::SameNode
        } else {
            Link::CrossNode
        }
    }

    /// The placement with ranks added, without slots, until it has those of the group.
    pub(super) fn widen(&self, placement: &Placement) -> Result<Placement, PlacementError> {
        if placement.num_ranks() > self.num_ranks() {
            return Err(RoutingError::RankCount {
                placement: placement.num_ranks(),
                topology: self.num_ranks(),
            }
            .into());
        }
        let same: Vec<Rank> = (0..placement.num_ranks()).map(Rank::new).collect();
        placement_in_group(placement, &same, self.num_ranks())
    }
}

/// The same placement in a group where its ranks have other numbers, e.g. for the migration from the
/// ranks 0, 1, 2, 3 to the three that are left when rank 1 goes and the others close up.
///
/// Ranks of the group that no rank of the placement becomes have no slots.
///
/// ```
/// use moekit_placement::{Placement, placement_in_group};
/// use moekit_routing::Rank;
///
/// let of_three = Placement::from_ranks(3, &[[0], [1], [2]])?;
/// let survivors = [0, 2, 3].map(Rank::new);
/// let of_four = placement_in_group(&of_three, &survivors, 4)?;
/// assert_eq!(of_four, Placement::from_ranks(3, &[vec![0], vec![], vec![1], vec![2]])?);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
///
/// # Arguments
///
/// - `ranks` - the number of each rank of the placement in the group, `[R]`.
/// - `num_ranks` - ranks of the group.
///
/// # Errors
///
/// If there is not one number per rank of the placement, or a number is used twice or outside of the
/// group.
pub fn placement_in_group(
    placement: &Placement,
    ranks: &[Rank],
    num_ranks: usize,
) -> Result<Placement, PlacementError> {
    if ranks.len() != placement.num_ranks() {
        return Err(PlacementError::Shape {
            what: "ranks of the placement that have a number in the group".to_owned(),
            got: ranks.len(),
            expected: placement.num_ranks(),
        });
    }
    // Made of a topology, so that a group of billions of ranks is refused before it costs memory.
    let num_ranks = Topology::new(num_ranks)?.num_ranks();
    let mut slots: Vec<Option<Vec<usize>>> = vec![None; num_ranks];
    for (own, rank) in ranks.iter().enumerate() {
        let place = slots
            .get_mut(rank.index())
            .ok_or(RoutingError::UnknownRank {
                group: "EP",
                rank: rank.index(),
                size: num_ranks,
            })?;
        if place.is_some() {
            return Err(PlacementError::RankTwice { rank: rank.index() });
        }
        let experts = placement.experts_of(Rank::new(own)).unwrap_or_default();
        *place = Some(experts.iter().map(|e| e.index()).collect());
    }
    let slots: Vec<Vec<usize>> = slots.into_iter().map(Option::unwrap_or_default).collect();
    Ok(Placement::from_ranks(
        placement.num_logical_experts(),
        &slots,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_do_not_fit_are_refused() {
        let placement = Placement::from_ranks(2, &[[0], [1]]).unwrap();
        let message = |ranks: &[usize], size| {
            let ranks: Vec<Rank> = ranks.iter().copied().map(Rank::new).collect();
            placement_in_group(&placement, &ranks, size)
                .unwrap_err()
                .to_string()
        };
        assert!(message(&[0], 3).contains("got 1, expected 2"));
        assert!(message(&[0, 3], 3).contains("rank 3 does not exist"));
        assert!(message(&[1, 1], 3).contains("rank 1"));
        assert!(message(&[0, 1], usize::MAX).contains("65536"));
    }

    #[test]
    fn nodes_tell_the_link() {
        let topology = Topology::new(5).unwrap().with_nodes(2).unwrap();
        let group = Group::new(&topology, &[]);
        let link = |a, b| group.link(Rank::new(a), Rank::new(b));
        assert_eq!(
            (link(0, 2), link(2, 3), link(3, 4)),
            (Link::SameNode, Link::CrossNode, Link::SameNode)
        );
    }
}
