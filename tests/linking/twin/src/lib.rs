//! Another plugin that is named `snake`.

use moekit_placement::{
    ModelPlacement, PlacementError, PlacementRequest, PlacementStrategy, register_strategy, typetag,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Not the strategy that the name promises.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
pub struct Twin {}

#[typetag::serde(name = "snake")]
impl PlacementStrategy for Twin {
    fn place(&self, _: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        Err(PlacementError::precondition(
            "snake",
            "this one never places",
        ))
    }
}

register_strategy! {
    Twin,
    name: "snake",
    summary: "Takes another plugin's name",
    example: Twin {},
}
