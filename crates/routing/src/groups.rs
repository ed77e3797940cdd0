//! From the parallel dimensions of a deployment to its EP group.

use serde::{Deserialize, Serialize};

use crate::RoutingError;
use crate::error::{MAX_RANKS, at_most};

/// Size of a parallel group and this process's rank in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GroupRank {
    /// Number of members.
    pub size: usize,
    /// This process, `0..size`.
    pub rank: usize,
}

impl GroupRank {
    /// The group of one.
    pub const ALONE: Self = Self { size: 1, rank: 0 };

    /// A rank of a group.
    ///
    /// # Errors
    ///
    /// If the group is empty or lacks the rank; `group` names it in the message.
    pub fn new(group: &'static str, size: usize, rank: usize) -> Result<Self, RoutingError> {
        if size == 0 {
            return Err(RoutingError::EmptyGroup { group });
        }
        if rank >= size {
            return Err(RoutingError::UnknownRank { group, rank, size });
        }
        Ok(Self { size, rank })
    }
}

/// The parallel dimensions that a deployment asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ParallelConfig {
    /// Tensor parallelism.
    pub tp: GroupRank,
    /// Data parallelism.
    pub dp: GroupRank,
    /// Prefill context parallelism.
    pub pcp: GroupRank,
    /// Size of the sequence-parallel group (1 = off); its members are TP ranks.
    pub sp_size: usize,
    /// Whether experts are spread over the flattened group instead of being sliced.
    pub enable_expert_parallel: bool,
}

/// The groups of a MoE layer.
///
/// The layer flattens DP, PCP and TP into one group. With expert parallelism that group is the EP
/// group and experts are whole; without it that group slices every expert as a TP group.
/// These are the rules of vLLM's `FusedMoEParallelConfig.make`.
///
/// ```
/// use moekit_routing::{GroupRank, ParallelConfig};
///
/// // TP = 2, DP = 2 with EP, device 3.
/// let groups = ParallelConfig {
///     tp: GroupRank { size: 2, rank: 1 },
///     dp: GroupRank { size: 2, rank: 1 },
///     pcp: GroupRank::ALONE,
///     sp_size: 1,
///     enable_expert_parallel: true,
/// }
/// .resolve()?;
/// assert_eq!(groups.ep, GroupRank { size: 4, rank: 3 });
/// assert_eq!(groups.tp, GroupRank::ALONE);
/// # Ok::<(), moekit_routing::RoutingError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ParallelGroups {
    /// Slices of one expert.
    pub tp: GroupRank,
    /// Data parallelism, as configured.
    pub dp: GroupRank,
    /// Prefill context parallelism, as configured.
    pub pcp: GroupRank,
    /// The expert-parallel group.
    pub ep: GroupRank,
    /// Size of the sequence-parallel group.
    pub sp_size: usize,
    /// Whether experts are spread over ranks.
    pub use_ep: bool,
}

impl ParallelConfig {
    /// Derives the groups of the MoE layer.
    ///
    /// # Errors
    ///
    /// If a group is empty, a rank lies outside of its group, or there are more ranks than 65 536.
    pub fn resolve(&self) -> Result<ParallelGroups, RoutingError> {
        let tp = GroupRank::new("TP", self.tp.size, self.tp.rank)?;
        let dp = GroupRank::new("DP", self.dp.size, self.dp.rank)?;
        let pcp = GroupRank::new("PCP", self.pcp.size, self.pcp.rank)?;
        if self.sp_size == 0 {
            return Err(RoutingError::EmptyGroup { group: "SP" });
        }
        let size = dp.size.saturating_mul(pcp.size).saturating_mul(tp.size);
        at_most("ranks", size, MAX_RANKS)?;
        let flat = GroupRank {
            size,
            rank: (dp.rank * pcp.size + pcp.rank) * tp.size + tp.rank,
        };
        let use_ep = flat.size > 1 && self.enable_expert_parallel;
        let (tp, ep) = if use_ep {
            (GroupRank::ALONE, flat)
        } else {
            (flat, GroupRank::ALONE)
        };
        Ok(ParallelGroups {
            tp,
            dp,
            pcp,
            ep,
            sp_size: self.sp_size,
            use_ep,
        })
    }
}

impl ParallelGroups {
    /// Whether tokens cross ranks to reach their expert: with EP alone over TP ranks every rank
    /// already has every token.
    pub fn needs_dispatch(&self) -> bool {
        self.use_ep && (self.dp.size > 1 || self.pcp.size > 1 || self.sp_size > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn g(size: usize, rank: usize) -> GroupRank {
        GroupRank { size, rank }
    }

    fn resolve(tp: GroupRank, dp: GroupRank, ep: bool) -> ParallelGroups {
        ParallelConfig {
            tp,
            dp,
            pcp: GroupRank::ALONE,
            sp_size: 1,
            enable_expert_parallel: ep,
        }
        .resolve()
        .unwrap()
    }

    /// The table that vLLM documents.
    #[test]
    fn documented_table() {
        for i in 0..2 {
            let no_ep = resolve(g(2, i), g(1, 0), false);
            assert_eq!((no_ep.tp, no_ep.dp, no_ep.ep), (g(2, i), g(1, 0), g(1, 0)));
            let no_ep = resolve(g(1, 0), g(2, i), false);
            assert_eq!((no_ep.tp, no_ep.dp, no_ep.ep), (g(2, i), g(2, i), g(1, 0)));
            let ep = resolve(g(2, i), g(1, 0), true);
            assert_eq!((ep.tp, ep.dp, ep.ep), (g(1, 0), g(1, 0), g(2, i)));
            assert!(!ep.needs_dispatch());
            let ep = resolve(g(1, 0), g(2, i), true);
            assert_eq!((ep.tp, ep.dp, ep.ep), (g(1, 0), g(2, i), g(2, i)));
            assert!(ep.needs_dispatch());
        }
        for device in 0..4 {
            let (dp, tp) = (g(2, device / 2), g(2, device % 2));
            let no_ep = resolve(tp, dp, false);
            assert_eq!((no_ep.tp, no_ep.dp, no_ep.ep), (g(4, device), dp, g(1, 0)));
            let ep = resolve(tp, dp, true);
            assert_eq!((ep.tp, ep.dp, ep.ep), (g(1, 0), dp, g(4, device)));
        }
    }

    #[test]
    fn pcp_lies_between_dp_and_tp() {
        let groups = ParallelConfig {
            tp: g(2, 1),
            dp: g(2, 1),
            pcp: g(3, 2),
            sp_size: 2,
            enable_expert_parallel: true,
        }
        .resolve()
        .unwrap();
        assert_eq!(groups.ep, g(12, 11));
    }

    #[test]
    fn one_rank_has_no_ep() {
        let alone = resolve(g(1, 0), g(1, 0), true);
        assert!(!alone.use_ep);
        assert_eq!(alone.ep, GroupRank::ALONE);
    }

    #[test]
    fn ranks_outside_of_their_group_are_refused() {
        let config = ParallelConfig {
            tp: g(2, 2),
            dp: g(1, 0),
            pcp: g(1, 0),
            sp_size: 1,
            enable_expert_parallel: true,
        };
        assert_eq!(
            config.resolve().unwrap_err().to_string(),
            "TP rank 2 does not exist: the group has ranks 0..2"
        );
    }
}
