use moekit_placement::{
    ModelPlacement, PlacementError, PlacementRequest, PlacementStrategy, typetag,
};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Counting {
    calls: std::cell::Cell<u64>,
}

#[typetag::serde(name = "counting")]
impl PlacementStrategy for Counting {
    fn place(&self, _: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        Err(PlacementError::NoLayers)
    }
}

fn main() {}
