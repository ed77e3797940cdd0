//! The conformance suite on `eplb` in each of its modes.

use moekit_placement::{ExpertLoad, PlacementRequest};
use moekit_strategy_eplb::{Eplb, Mode};

fn even(request: &PlacementRequest<'_>) -> bool {
    let slots = request.slots_per_rank();
    slots.windows(2).all(|w| w[0] == w[1])
}

fn unloaded(request: &PlacementRequest<'_>) -> bool {
    let loaded = |load: &ExpertLoad| load.layers().flatten().any(|&load| load > 0.0);
    !request.load().is_some_and(loaded)
}

/// What DeepSeek's code asserts for its hierarchical mode.
fn divisible(request: &PlacementRequest<'_>) -> bool {
    let topology = request.topology();
    let nodes = topology.num_nodes();
    topology.num_ranks().is_multiple_of(nodes)
        && request
            .num_expert_groups()
            .is_some_and(|groups| groups.is_multiple_of(nodes))
}

mod global {
    use super::*;

    moekit_testkit::strategy_conformance! {
        plugin: moekit_strategy_eplb,
        strategy: Eplb { mode: Mode::Global, preserve_slots: true },
        supports: |request| unloaded(request) || even(request),
    }
}

mod hierarchical {
    use super::*;

    moekit_testkit::strategy_conformance! {
        plugin: moekit_strategy_eplb,
        strategy: Eplb { mode: Mode::Hierarchical, preserve_slots: false },
        supports: |request| unloaded(request) || even(request) && divisible(request),
    }
}

mod auto {
    use super::*;

    /// Global unless nodes divide groups, and then hierarchical with all that this requires.
    fn supported(request: &PlacementRequest<'_>) -> bool {
        let topology = request.topology();
        let nodes = topology.num_nodes();
        let grouped = request
            .num_expert_groups()
            .is_some_and(|g| g.is_multiple_of(nodes));
        even(request) && (!grouped || divisible(request))
    }

    moekit_testkit::strategy_conformance! {
        plugin: moekit_strategy_eplb,
        strategy: Eplb::default(),
        supports: |request| unloaded(request) || supported(request),
    }
}
