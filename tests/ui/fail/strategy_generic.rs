#![allow(unused_imports, reason = "typetag gives up before it uses them")]

use moekit_placement::{
    ModelPlacement, PlacementError, PlacementRequest, PlacementStrategy, typetag,
};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Weighted<T> {
    weight: T,
}

#[typetag::serde(name = "weighted")]
impl<T> PlacementStrategy for Weighted<T> {
    fn place(&self, _: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        Err(PlacementError::NoLayers)
    }
}

fn main() {}
