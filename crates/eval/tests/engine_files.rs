//! The files for other engines, read back by the rules of those engines.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use moekit_eval::EvalError;
use moekit_eval::engine_file::{Engine, ModelLayers, to_text, write};
use moekit_placement::{ModelPlacement, Placement};
use moekit_routing::{LogicalExpert, PhysicalExpert, Rank, RoutingTable, Topology};
use proptest::prelude::*;
use serde::Deserialize;

fn table(layer: &Placement) -> RoutingTable {
    RoutingTable::new(
        layer.clone(),
        Topology::new(layer.num_ranks()).unwrap(),
        0,
        0,
    )
    .unwrap()
}

fn model(layers: &[&[&[usize]]], experts: usize) -> ModelPlacement {
    let layers = layers
        .iter()
        .map(|ranks| Placement::from_ranks(experts, ranks).unwrap());
    ModelPlacement::new(layers.collect()).unwrap()
}

/// `ExpertLocationMetadata.init_by_mapping` and what dispatch makes of it: the slots of each
/// expert, ascending, and a slot's GPU by division.
mod sglang {
    use super::*;

    #[derive(Deserialize)]
    // `init_by_mapping(.., **data_dict)`: another key is a TypeError.
    #[serde(deny_unknown_fields)]
    struct File {
        physical_to_logical_map: Vec<Vec<usize>>,
    }

    pub(super) fn check(text: &str, placement: &ModelPlacement, layers: &ModelLayers) {
        let file: File = serde_json::from_str(text).unwrap();
        let (experts, ranks) = (placement.num_logical_experts(), placement.num_ranks());
        let rows = file.physical_to_logical_map;
        assert_eq!(
            rows.len(),
            layers.num_layers(),
            "a row per layer of the model"
        );
        let slots = rows[0].len();
        assert_eq!(slots % ranks, 0, "num_physical_experts % ep_size == 0");
        for row in &rows {
            assert_eq!(row.len(), slots, "one tensor");
            let mut all_physical = vec![vec![]; experts];
            for (slot, &expert) in row.iter().enumerate() {
                all_physical[expert].push(slot);
            }
            assert!(all_physical.iter().all(|slots| !slots.is_empty()));
        }
        for (&row, layer) in layers.moe_layers().iter().zip(placement.layers()) {
            let table = table(layer);
            for (slot, &expert) in rows[row].iter().enumerate() {
                let slot_id = PhysicalExpert::new(slot);
                assert_eq!(table.logical_of(slot_id), Some(LogicalExpert::new(expert)));
                assert_eq!(
                    table.owner(slot_id),
                    Some(Rank::new(slot / (slots / ranks)))
                );
            }
        }
    }
}

/// `MoeLoadBalancerConfig`: integer keys, every list `num_slots` long and covering the experts,
/// rank `r` from slot `r * num_slots / ep_size`.
mod tensorrt_llm {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        num_slots: usize,
        initial_global_assignments: BTreeMap<usize, Vec<usize>>,
        #[serde(default)]
        layer_updates_per_iter: usize,
    }

    pub(super) fn check(text: &str, placement: &ModelPlacement, layers: &ModelLayers) {
        let file: File = serde_saphyr::from_str(text).unwrap();
        assert_eq!(file.layer_updates_per_iter, 0);
        let ranks = placement.num_ranks();
        assert_eq!(file.num_slots % ranks, 0);
        assert!(file.num_slots >= placement.num_logical_experts());
        let keys: Vec<usize> = file.initial_global_assignments.keys().copied().collect();
        assert_eq!(keys, layers.moe_layers());
        for (assignment, layer) in file
            .initial_global_assignments
            .values()
            .zip(placement.layers())
        {
            assert_eq!(assignment.len(), file.num_slots);
            let local = file.num_slots / ranks;
            for rank in 0..ranks {
                let slot_start = rank * local;
                let held = &assignment[slot_start..slot_start + local];
                let expected = layer.experts_of(Rank::new(rank)).unwrap();
                assert!(held.iter().copied().eq(expected.iter().map(|e| e.index())));
            }
        }
    }
}

/// The list of the proposed `--expert-placement-file`: one rank per expert, below the EP size;
/// the experts of a rank in ascending order.
mod vllm {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        expert_to_ep_rank: Vec<usize>,
    }

    pub(super) fn check(text: &str, placement: &ModelPlacement) {
        let file: File = serde_json::from_str(text).unwrap();
        assert_eq!(
            file.expert_to_ep_rank.len(),
            placement.num_logical_experts()
        );
        assert!(
            file.expert_to_ep_rank
                .iter()
                .all(|&r| r < placement.num_ranks())
        );
        for layer in placement.layers() {
            for rank in 0..placement.num_ranks() {
                let ranks = file.expert_to_ep_rank.iter().enumerate();
                let local = ranks.filter(|(_, r)| **r == rank).map(|(e, _)| e);
                let held = layer.experts_of(Rank::new(rank)).unwrap();
                let mut held: Vec<usize> = held.iter().map(|e| e.index()).collect();
                held.sort_unstable();
                assert!(local.eq(held));
            }
        }
    }
}

/// `expert_file_to_tensor`, `init_eplb_config` and `generate_log2phy_map`: rectangular rows, an
/// expert map per rank, and slot numbers that start at `rank * experts on rank 0`.
mod vllm_ascend {
    use super::*;

    #[derive(Deserialize)]
    struct File {
        moe_layer_count: usize,
        layer_list: Vec<Layer>,
    }

    #[derive(Deserialize)]
    struct Layer {
        device_list: Vec<Device>,
    }

    #[derive(Deserialize)]
    struct Device {
        device_expert: Vec<usize>,
    }

    pub(super) fn check(text: &str, placement: &ModelPlacement) {
        let file: File = serde_json::from_str(text).unwrap();
        assert_eq!(file.moe_layer_count, placement.num_layers());
        assert_eq!(file.layer_list.len(), placement.num_layers());
        let physical = |layer: &Layer| {
            let devices = layer.device_list.iter();
            devices.map(|d| d.device_expert.len()).sum::<usize>()
        };
        let count = physical(&file.layer_list[0]);
        for (layer, ours) in file.layer_list.iter().zip(placement.layers()) {
            assert_eq!(physical(layer), count, "one redundant count for all layers");
            let table = table(ours);
            let experts = ours.num_logical_experts();
            let width = layer.device_list[0].device_expert.len();
            let mut maps = vec![];
            for device in &layer.device_list {
                assert_eq!(device.device_expert.len(), width, "rows of one tensor");
                let mut map = vec![-1; experts];
                for (local, &expert) in device.device_expert.iter().enumerate() {
                    map[expert] = local as i32;
                }
                maps.push(map);
            }
            let valid_count = maps[0].iter().filter(|v| **v != -1).count();
            for (rank, map) in maps.iter().enumerate() {
                assert_eq!(Some(map.as_slice()), table.expert_map(Rank::new(rank)));
                for (expert, &local) in map.iter().enumerate().filter(|(_, l)| **l != -1) {
                    let slot = PhysicalExpert::new(local as usize + rank * valid_count);
                    assert_eq!(table.logical_of(slot), Some(LogicalExpert::new(expert)));
                }
            }
        }
    }
}

/// A model of even ranks; with replicas only if `redundant` is not 0.
fn any_model() -> impl Strategy<Value = (ModelPlacement, ModelLayers)> {
    (1usize..5, 1usize..5, 1usize..4, any::<bool>()).prop_flat_map(
        |(ranks, slots, layers, free)| {
            let total = ranks * slots;
            (1..=total, 0usize..3).prop_flat_map(move |(experts, dense)| {
                let experts = if free { experts } else { total };
                let fill = prop::collection::vec(0..experts, total - experts);
                let layer = fill
                    .prop_flat_map(move |fill| {
                        let slots: Vec<usize> = (0..experts).chain(fill).collect();
                        Just(slots).prop_shuffle()
                    })
                    .prop_map(move |slots_of| {
                        let offsets = (0..=ranks).map(|r| r * slots).collect();
                        Placement::new(experts, slots_of, offsets).unwrap()
                    });
                prop::collection::vec(layer, layers).prop_map(move |list| {
                    let moe = (dense..dense + layers).collect();
                    let layers = ModelLayers::new(dense + layers, moe).unwrap();
                    (ModelPlacement::new(list).unwrap(), layers)
                })
            })
        },
    )
}

proptest! {
    #[test]
    fn engines_read_what_is_written((placement, layers) in any_model()) {
        sglang::check(&to_text(Engine::Sglang, &placement, &layers).unwrap(), &placement, &layers);
        let yaml = to_text(Engine::TensorRtLlm, &placement, &layers).unwrap();
        tensorrt_llm::check(&yaml, &placement, &layers);

        let duplicates = placement.layers().iter().any(|l| l.duplicates_on_a_rank() > 0);
        match to_text(Engine::VllmAscend, &placement, &layers) {
            Ok(text) => {
                prop_assert!(!duplicates && placement.num_ranks() > 1);
                vllm_ascend::check(&text, &placement);
            }
            Err(error) => {
                prop_assert!(duplicates || placement.num_ranks() == 1, "{error}");
            }
        }

        let owners = |l: &Placement| {
            let table = table(l);
            let slots = table.global_to_physical();
            slots.into_iter().map(|s| table.owner(s)).collect::<Vec<_>>()
        };
        let replicas = placement.layers().iter().any(|l| l.num_redundant_experts() > 0);
        let alike = placement.layers().iter().all(|l| owners(l) == owners(&placement.layers()[0]));
        match to_text(Engine::Vllm, &placement, &layers) {
            Ok(text) => {
                prop_assert!(!replicas && alike);
                vllm::check(&text, &placement);
            }
            Err(error) => prop_assert!(replicas || !alike, "{error}"),
        }
    }
}

#[test]
fn broken_rules_are_named() {
    let says = |engine, placement: &ModelPlacement, parts: [&str; 2]| {
        let layers = ModelLayers::moe_from(0, placement.num_layers()).unwrap();
        let error = to_text(engine, placement, &layers).unwrap_err();
        assert!(matches!(error, EvalError::Engine { .. }), "{error:?}");
        let error = error.to_string();
        assert!(parts.iter().all(|part| error.contains(part)), "{error}");
    };
    let uneven = model(&[&[&[0, 1], &[2, 3]], &[&[0, 1, 2], &[3]]], 4);
    for engine in [Engine::Sglang, Engine::TensorRtLlm, Engine::VllmAscend] {
        says(
            engine,
            &uneven,
            ["the same number of slots", "rank 0 of layer 1 has 3"],
        );
    }
    says(
        Engine::Vllm,
        &uneven,
        [
            "same ranks",
            "expert 2 is on rank 1 in layer 0 and on rank 0",
        ],
    );
    let replicas = model(&[&[&[0, 1], &[1, 2]]], 3);
    says(
        Engine::Vllm,
        &replicas,
        ["vLLM takes a placement only", "expert 1 of layer 0 has 2"],
    );
    let twice = model(&[&[&[0, 1], &[2, 2]]], 3);
    says(
        Engine::VllmAscend,
        &twice,
        [
            "twice on a rank",
            "rank 1 of layer 0 holds logical expert 2",
        ],
    );
    says(
        Engine::VllmAscend,
        &model(&[&[&[0]]], 1),
        ["two or more ranks", "has 1"],
    );
}

#[test]
fn uneven_ranks_without_replicas_suit_vllm() {
    let placement = model(&[&[&[2, 0, 1], &[3]]], 4);
    let text = to_text(
        Engine::Vllm,
        &placement,
        &ModelLayers::moe_from(0, 1).unwrap(),
    )
    .unwrap();
    assert_eq!(text, "{\"expert_to_ep_rank\":[0,0,0,1]}\n");
}

#[test]
fn layers_of_the_model_are_checked() {
    let placement = model(&[&[&[0]]], 1);
    let error = to_text(
        Engine::Sglang,
        &placement,
        &ModelLayers::moe_from(0, 2).unwrap(),
    )
    .unwrap_err();
    assert!(error.to_string().contains("is 2, expected 1"), "{error}");
    for (first, layers, said) in [
        (3, 2, "the first MoE layer is 3, expected at most 2"),
        (0, usize::MAX, "expected at most 65536"),
        (usize::MAX - 1, usize::MAX, "expected at most 65536"),
    ] {
        let error = ModelLayers::moe_from(first, layers).unwrap_err();
        assert!(error.to_string().contains(said), "{error}");
    }
    for moe in [vec![1, 0], vec![0, 0], vec![0, 2]] {
        let error = ModelLayers::new(2, moe.clone()).unwrap_err().to_string();
        assert!(error.contains(&format!("{moe:?}")), "{error}");
    }
    let dense_first = to_text(
        Engine::Sglang,
        &placement,
        &ModelLayers::new(2, vec![1]).unwrap(),
    );
    assert_eq!(
        dense_first.unwrap(),
        "{\"physical_to_logical_map\":[[0],[0]]}\n"
    );
}

#[test]
fn engines_have_names() {
    for engine in Engine::ALL {
        assert_eq!(engine.name().parse::<Engine>().unwrap(), *engine);
    }
    let error = "sgl".parse::<Engine>().unwrap_err().to_string();
    assert!(
        error.contains("`sgl`") && error.contains("vllm-ascend"),
        "{error}"
    );
}

#[test]
fn files_are_written() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("map.json");
    let placement = model(&[&[&[1], &[0]]], 2);
    write(
        &path,
        Engine::VllmAscend,
        &placement,
        &ModelLayers::moe_from(0, 1).unwrap(),
    )
    .unwrap();
    vllm_ascend::check(&std::fs::read_to_string(&path).unwrap(), &placement);
}
