use serde::{Deserialize, Serialize};

use crate::error::{MAX_RANKS, at_most};
use crate::{Rank, RoutingError, even_offsets};

/// The ranks of an EP group and the nodes that they sit on.
///
/// The ranks of a node are consecutive, as launchers number them.
///
/// ```
/// use moekit_routing::{Rank, Topology};
///
/// let topology = Topology::new(8)?.with_nodes(2)?;
/// assert_eq!(topology.node_of(Rank::new(5)), Some(1));
/// assert_eq!(topology.node_of(Rank::new(8)), None);
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Offsets")]
pub struct Topology {
    /// `[num_nodes + 1]`: node `n` has ranks `node_offsets[n]..node_offsets[n + 1]`.
    node_offsets: Vec<usize>,
}

/// A topology as it is stored.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Offsets {
    node_offsets: Vec<usize>,
}

impl TryFrom<Offsets> for Topology {
    type Error = RoutingError;

    fn try_from(Offsets { node_offsets }: Offsets) -> Result<Self, RoutingError> {
        let (first, last) = (node_offsets.first(), node_offsets.last());
        let grow = node_offsets.windows(2).all(|w| w[0] < w[1]);
        if node_offsets.len() < 2 || first != Some(&0) || !grow {
            return Err(RoutingError::NodeOffsets {
                offsets: node_offsets,
            });
        }
        at_most("ranks", last.copied().unwrap_or_default(), MAX_RANKS)?;
        Ok(Self { node_offsets })
    }
}

impl Topology {
    /// `num_ranks` ranks on one node.
    ///
    /// # Errors
    ///
    /// If there is no rank, or more than 65 536.
    pub fn new(num_ranks: usize) -> Result<Self, RoutingError> {
        if num_ranks == 0 {
            return Err(RoutingError::NoRanks);
        }
        at_most("ranks", num_ranks, MAX_RANKS)?;
        Ok(Self {
            node_offsets: vec![0, num_ranks],
        })
    }

    /// The same ranks on `num_nodes` nodes, as evenly as possible: if nodes do not divide ranks,
    /// the first nodes hold one rank more.
    ///
    /// # Errors
    ///
    /// If there would be a node without a rank, or no node.
    pub fn with_nodes(self, num_nodes: usize) -> Result<Self, RoutingError> {
        let num_ranks = self.num_ranks();
        if num_nodes == 0 || num_nodes > num_ranks {
            return Err(RoutingError::Nodes {
                num_nodes,
                num_ranks,
            });
        }
        Ok(Self {
            node_offsets: even_offsets(num_ranks, num_nodes),
        })
    }

    /// Number of ranks of the EP group.
    pub fn num_ranks(&self) -> usize {
        self.node_offsets.last().copied().unwrap_or(0)
    }

    /// Number of nodes.
    pub fn num_nodes(&self) -> usize {
        self.node_offsets.len() - 1
    }

    /// The node of a rank, `None` if the rank does not exist.
    pub fn node_of(&self, rank: Rank) -> Option<usize> {
        (rank.index() < self.num_ranks())
            .then(|| self.node_offsets.partition_point(|&o| o <= rank.index()) - 1)
    }

    /// The ranks of a node, `None` if the node does not exist.
    pub fn ranks_of(&self, node: usize) -> Option<std::ops::Range<usize>> {
        Some(*self.node_offsets.get(node)?..*self.node_offsets.get(node + 1)?)
    }

    /// Ranks per node if all nodes have the same number.
    pub fn ranks_per_node(&self) -> Option<usize> {
        let per_node = self.num_ranks() / self.num_nodes();
        (self.num_ranks() == per_node * self.num_nodes()).then_some(per_node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_do_not_divide_ranks_are_uneven() -> Result<(), RoutingError> {
        let t = Topology::new(5)?.with_nodes(2)?;
        assert_eq!(
            (t.ranks_of(0), t.ranks_of(1), t.ranks_of(2)),
            (Some(0..3), Some(3..5), None)
        );
        assert_eq!(t.ranks_per_node(), None);
        assert_eq!(t.node_of(Rank::new(2)), Some(0));
        assert_eq!(t.node_of(Rank::new(3)), Some(1));
        Ok(())
    }

    #[test]
    fn what_is_stored_is_checked() {
        let topology = Topology::new(5).and_then(|t| t.with_nodes(2)).unwrap();
        let text = serde_json::to_string(&topology).unwrap();
        assert_eq!(serde_json::from_str::<Topology>(&text).unwrap(), topology);
        for offsets in ["[]", "[0]", "[1,2]", "[0,2,2]", "[0,70000]"] {
            let text = format!("{{\"node_offsets\":{offsets}}}");
            assert!(serde_json::from_str::<Topology>(&text).is_err(), "{text}");
        }
    }

    #[test]
    fn impossible_groups_are_refused() {
        assert_eq!(Topology::new(0), Err(RoutingError::NoRanks));
        assert!(matches!(
            Topology::new(usize::MAX),
            Err(RoutingError::TooMany { .. })
        ));
        for num_nodes in [0, 3] {
            assert_eq!(
                Topology::new(2).and_then(|t| t.with_nodes(num_nodes)),
                Err(RoutingError::Nodes {
                    num_nodes,
                    num_ranks: 2
                })
            );
        }
    }
}
