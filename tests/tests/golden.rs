//! Placements and tables as other engines and earlier versions have them.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_placement::{
    ModelPlacement, Placement, PlacementFile, PlacementRequest, PlacementStrategy, Topology,
};
use moekit_routing::{Rank, RoutingTable};
use moekit_strategy_linear::Linear;
use moekit_strategy_round_robin::RoundRobin;
use serde_json::{Value, json};

const VLLM_TABLES: &str = include_str!("../golden/vllm_tables.json");
const PLACEMENT: &str = include_str!("../golden/placement.json");

fn strategy(name: &str) -> Box<dyn PlacementStrategy> {
    match name {
        "linear" => Box::new(Linear {}),
        "round_robin" => Box::new(RoundRobin {}),
        other => panic!("vLLM has no strategy {other}"),
    }
}

fn table(name: &str, experts: usize, ranks: usize, shared: usize) -> RoutingTable {
    let topology = Topology::new(ranks).unwrap();
    let request = PlacementRequest::new(1, experts, &topology).unwrap();
    let plan = strategy(name).plan(&request).unwrap();
    let layer = plan.into_layers().remove(0);
    RoutingTable::new(layer, topology, shared, 0).unwrap()
}

#[test]
fn vllms_tables_to_the_entry() {
    let cases: Vec<Value> = serde_json::from_str(VLLM_TABLES).unwrap();
    assert_eq!(cases.len(), 10);
    for case in cases {
        let size = |key: &str| case[key].as_u64().unwrap() as usize;
        let (experts, ranks, shared) = (size("experts"), size("ranks"), size("shared"));
        let name = case["strategy"].as_str().unwrap();
        let table = table(name, experts, ranks, shared);

        let by_rank: Vec<Value> = (0..ranks)
            .map(|rank| {
                let rank = table.rank(Rank::new(rank)).unwrap();
                json!({
                    "num_local_experts": rank.local_to_global.len(),
                    "expert_map": rank.expert_map,
                    "expert_mask": rank.expert_mask,
                    "local_to_global": rank.local_to_global,
                })
            })
            .collect();
        let what = format!("{name}, {experts} experts, {ranks} ranks, {shared} shared");
        assert_eq!(Value::from(by_rank), case["tables"], "{what}");
        // vLLM's permutations leave shared experts out.
        let to_physical = &table.global_to_physical()[..experts];
        assert_eq!(json!(to_physical), case["global_to_physical"], "{what}");
        let to_global = &table.physical_to_global()[..experts];
        assert_eq!(json!(to_global), case["physical_to_global"], "{what}");
    }
}

/// vLLM's formulas, directly: rank and local index of expert `g` of `experts` on `ranks`.
fn owner_and_local(name: &str, g: usize, experts: usize, ranks: usize) -> (usize, usize) {
    if name == "round_robin" {
        return (g % ranks, g / ranks);
    }
    let (base, rem) = (experts / ranks, experts % ranks);
    let start = |rank: usize| rank * base + rank.min(rem);
    let rank = (0..ranks)
        .rfind(|&rank| start(rank) <= g && start(rank) < start(rank + 1))
        .unwrap();
    (rank, g - start(rank))
}

#[test]
fn vllms_formulas_for_many_shapes() {
    for name in ["linear", "round_robin"] {
        for experts in 1..=33 {
            for ranks in 1..=17 {
                let table = table(name, experts, ranks, 0);
                let (base, rem) = (experts / ranks, experts % ranks);
                for g in 0..experts {
                    let (owner, local) = owner_and_local(name, g, experts, ranks);
                    let what = format!("{name}: expert {g} of {experts} on {ranks} ranks");
                    for rank in 0..ranks {
                        let map = table.expert_map(Rank::new(rank)).unwrap();
                        let expected = if rank == owner { local as i32 } else { -1 };
                        assert_eq!(map[g], expected, "{what}, rank {rank}");
                    }
                    let slot = table.global_to_physical()[g];
                    assert_eq!(
                        slot.index(),
                        owner * base + owner.min(rem) + local,
                        "{what}"
                    );
                    assert_eq!(
                        table.physical_to_global()[slot.index()].index(),
                        g,
                        "{what}"
                    );
                }
            }
        }
    }
}

#[test]
fn placement_files_stay_readable() {
    let file: PlacementFile = serde_json::from_str(PLACEMENT).unwrap();
    let plan = ModelPlacement::try_from(file).unwrap();
    let layers = [
        Placement::from_ranks(5, &[[0, 1], [2, 3], [4, 0]]).unwrap(),
        Placement::from_ranks(5, &[vec![], vec![4, 3, 2, 1, 0], vec![4, 4]]).unwrap(),
    ];
    assert_eq!(plan, ModelPlacement::new(layers.to_vec()).unwrap());
    let written = serde_json::to_string(&PlacementFile::from(&plan)).unwrap();
    assert_eq!(written, PLACEMENT.trim_end());
}
