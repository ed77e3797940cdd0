//! What each program does: plan with the strategy `snake`, wherever it may come from.

use moekit_placement::{
    ModelPlacement, PlacementError, PlacementRequest, PlacementStrategy, Topology,
    strategy_from_value,
};
use serde_json::json;

/// Prints what comes of asking moekit for the strategy, and of asking `typetag` alone.
pub fn report() {
    let config = json!({"strategy": "snake"});
    match strategy_from_value(config.clone()).and_then(|strategy| plan(&*strategy)) {
        Ok(plan) => println!("planned: {:?}", plan.layers()[0].rank_offsets()),
        Err(error) => println!("error: {error}"),
    }
    match serde_json::from_value::<Box<dyn PlacementStrategy>>(config) {
        Ok(strategy) => println!("typetag: {strategy:?}"),
        Err(error) => println!("typetag: {error}"),
    }
}

fn plan(strategy: &(dyn PlacementStrategy + 'static)) -> Result<ModelPlacement, PlacementError> {
    let topology = Topology::new(2)?;
    strategy.plan(&PlacementRequest::new(1, 4, &topology)?)
}
