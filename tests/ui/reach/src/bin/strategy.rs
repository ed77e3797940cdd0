//! Asks its view of the layer for the strategy. Does not compile.

use moekit_routing::ExpertRouting;

fn strategy(routing: &dyn ExpertRouting) {
    let _ = routing.strategy();
}

fn main() {
    let _ = strategy;
}
