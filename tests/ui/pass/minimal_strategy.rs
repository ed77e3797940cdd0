//! The least that a strategy is. It must compile with every later version of the trait.

use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, Topology,
    typetag,
};

#[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Minimal {}

#[typetag::serde(name = "minimal")]
impl PlacementStrategy for Minimal {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let experts = request.num_logical_experts();
        let slots = (0..request.num_slots()).map(|slot| slot % experts).collect();
        let layer = Placement::new(experts, slots, request.rank_offsets())?;
        ModelPlacement::new(vec![layer; request.num_layers()])
    }
}

moekit_placement::register_strategy! {
    Minimal,
    name: "minimal",
    summary: "The least that a strategy is",
    example: Minimal {},
}

fn main() {
    let config = serde_json::json!({"strategy": "minimal"});
    let strategy = moekit_placement::strategy_from_value(config).unwrap();
    let topology = Topology::new(2).unwrap();
    let request = PlacementRequest::new(1, 4, &topology).unwrap();
    assert_eq!(strategy.plan(&request).unwrap().num_ranks(), 2);
}
