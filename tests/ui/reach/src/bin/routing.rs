//! Asks what a backend may ask. Compiles.

use moekit_routing::ExpertRouting;

fn local_experts(routing: &dyn ExpertRouting) -> usize {
    routing.routing_table().generation() as usize + routing.num_local_experts()
}

fn main() {
    let _ = local_experts;
}
