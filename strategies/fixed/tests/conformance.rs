//! The conformance suite on `fixed`.

use moekit_placement::{ModelPlacement, Placement, PlacementFile, PlacementRequest};
use moekit_strategy_fixed::Fixed;

/// One layer of 8 experts and a second replica of expert 0, on 2 ranks.
fn placement() -> PlacementFile {
    let ranks = [vec![7, 5, 3, 1], vec![0, 2, 4, 6, 0]];
    let layer = Placement::from_ranks(8, &ranks).expect("a valid placement");
    PlacementFile::from(&ModelPlacement::new(vec![layer]).expect("one layer"))
}

fn asks_for_it(request: &PlacementRequest<'_>) -> bool {
    let shape = (request.num_layers(), request.num_logical_experts());
    let slots_fit = !request.slots_requested() || request.slots_per_rank() == [4, 5];
    shape == (1, 8) && request.topology().num_ranks() == 2 && slots_fit
}

moekit_testkit::strategy_conformance! {
    plugin: moekit_strategy_fixed,
    strategy: Fixed { file: None, placement: Some(placement()) },
    supports: asks_for_it,
}
