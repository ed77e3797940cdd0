//! Experts in order: the first rank holds the first experts, and so on.
//!
//! Redundant slots follow the experts and hold experts 0, 1, 2, ... again: the placement with
//! which vLLM starts, with and without EPLB.

use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy,
    register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Slot `s` holds expert `s % E`; slots are dealt to ranks in order.
///
/// ```
/// use moekit_placement::{PlacementRequest, PlacementStrategy, Topology};
/// use moekit_strategy_linear::Linear;
///
/// let topology = Topology::new(3)?;
/// let request = PlacementRequest::new(1, 4, &topology)?.with_redundant_experts(1)?;
/// let placement = Linear {}.place(&request)?;
/// let slots: Vec<_> = placement.layers()[0].physical_to_logical().iter().map(|e| e.index()).collect();
/// assert_eq!((slots, placement.layers()[0].rank_offsets()), (vec![0, 1, 2, 3, 0], &[0, 2, 4, 5][..]));
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Linear {}

#[typetag::serde(name = "linear")]
impl PlacementStrategy for Linear {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let experts = request.num_logical_experts();
        let slots = (0..request.num_slots())
            .map(|slot| slot % experts)
            .collect();
        let layer = Placement::new(experts, slots, request.rank_offsets())?;
        ModelPlacement::new(vec![layer; request.num_layers()])
    }
}

register_strategy! {
    Linear,
    name: "linear",
    summary: "Experts in order, rank by rank; redundant slots repeat the first experts",
    example: Linear {},
}
