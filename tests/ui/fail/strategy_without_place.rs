use moekit_placement::{PlacementStrategy, typetag};

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Idle {}

#[typetag::serde(name = "idle")]
impl PlacementStrategy for Idle {}

fn main() {}
