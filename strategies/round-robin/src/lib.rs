//! Experts dealt to ranks in turn.
//!
//! Neighbouring experts, which group-limited gating tends to choose together, end up on different
//! ranks. vLLM allows this placement only in some deployments; here it always holds.

use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy,
    register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Expert `e` goes to rank `e % R`. Redundant slots go on in turn: each takes expert `s % E`, or
/// the next one that its rank does not hold already, because a second copy on a rank is wasted.
///
/// ```
/// use moekit_placement::{PlacementRequest, PlacementStrategy, Topology};
/// use moekit_strategy_round_robin::RoundRobin;
///
/// let topology = Topology::new(2)?;
/// let request = PlacementRequest::new(1, 4, &topology)?.with_redundant_experts(2)?;
/// let placement = RoundRobin {}.place(&request)?;
/// let slots: Vec<_> = placement.layers()[0].physical_to_logical().iter().map(|e| e.index()).collect();
/// assert_eq!(slots, [0, 2, 1, 1, 3, 2]);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RoundRobin {}

#[typetag::serde(name = "round_robin")]
impl PlacementStrategy for RoundRobin {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let ranks = deal(request.num_logical_experts(), request.slots_per_rank());
        let layer = Placement::from_ranks(request.num_logical_experts(), &ranks)?;
        ModelPlacement::new(vec![layer; request.num_layers()])
    }
}

register_strategy! {
    RoundRobin,
    name: "round_robin",
    summary: "Experts dealt to ranks in turn; redundant slots take experts new to their rank",
    example: RoundRobin {},
}

/// Deals slots in turn, passing over ranks that are full.
fn deal(num_experts: usize, slots_per_rank: &[usize]) -> Vec<Vec<usize>> {
    let mut ranks: Vec<Vec<usize>> = slots_per_rank
        .iter()
        .map(|&n| Vec::with_capacity(n))
        .collect();
    let rounds = slots_per_rank.iter().copied().max().unwrap_or(0);
    let mut slot = 0;
    for round in 0..rounds {
        for (rank, _) in ranks
            .iter_mut()
            .zip(slots_per_rank)
            .filter(|(_, n)| **n > round)
        {
            let expert = if slot < num_experts {
                slot
            } else {
                let in_turn = (0..num_experts).map(|i| (slot + i) % num_experts);
                in_turn
                    .clone()
                    .find(|e| !rank.contains(e))
                    .unwrap_or(slot % num_experts)
            };
            rank.push(expert);
            slot += 1;
        }
    }
    ranks
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_and_local_indices_are_vllms() {
        for (experts, ranks) in [(8, 3), (7, 4), (3, 5)] {
            let slots: Vec<_> = (0..ranks)
                .map(|r| (experts + ranks - 1 - r) / ranks)
                .collect();
            let dealt = deal(experts, &slots);
            for e in 0..experts {
                assert_eq!(dealt[e % ranks][e / ranks], e);
            }
        }
    }

    #[test]
    fn full_ranks_are_passed_over() {
        assert_eq!(deal(5, &[1, 0, 4]), [vec![0], vec![], vec![1, 2, 3, 4]]);
    }

    #[test]
    fn a_rank_repeats_an_expert_only_if_it_holds_all() {
        assert_eq!(deal(4, &[3, 3]), [[0, 2, 1], [1, 3, 2]]);
        assert_eq!(deal(2, &[3]), [[0, 1, 0]]);
    }
}
