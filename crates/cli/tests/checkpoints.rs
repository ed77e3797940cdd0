//! Every family and format that the fixture scripts make with the original libraries, on one rank
//! and several, against the reference outputs.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{compare, json, repository};
use serde_json::Value;

/// The checkpoints of this repository, and those beside it if there are any.
fn checkpoints() -> Vec<PathBuf> {
    let folders = ["tests/fixtures/checkpoints", "../shared/checkpoints"];
    let mut all: Vec<PathBuf> = folders
        .iter()
        .filter_map(|folder| std::fs::read_dir(repository().join(folder)).ok())
        .flatten()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.join("reference.safetensors").exists())
        .collect();
    all.sort();
    assert!(all.len() >= 50, "the fixtures are part of the repository");
    all
}

/// Runs a check on every checkpoint and reports all that fail it.
fn on_all(check: impl Fn(&Path)) {
    let failed: Vec<_> = checkpoints()
        .into_iter()
        .filter(|path| {
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(path))).is_err()
        })
        .collect();
    assert!(
        failed.is_empty(),
        "{} checkpoints: {failed:#?}",
        failed.len()
    );
}

#[test]
fn one_rank() {
    on_all(|checkpoint| {
        compare(checkpoint, &[], 1e-4);
    });
}

/// The strategies that this program links.
fn strategies() -> Vec<String> {
    let list = json(&["strategies", "list", "--json"]);
    let names = list.as_array().unwrap().iter();
    let names: Vec<String> = names
        .map(|strategy| strategy["name"].as_str().unwrap().to_owned())
        .collect();
    assert!(names.len() >= 4, "{names:?}");
    names
}

/// A placement file for all MoE layers of a checkpoint: experts strewn over the ranks, which hold
/// different numbers of slots; two experts have a replica.
fn strewn(checkpoint: &Path, ranks: usize) -> Value {
    let report = json(&["inspect", checkpoint.to_str().unwrap(), "--json"]);
    let layers = report["layers"].as_array().unwrap();
    let experts = layers[0]["num_experts"].as_u64().unwrap() as usize;
    // One of two primes has no factor in common with the experts, so that all are visited.
    let step = if experts.is_multiple_of(5) { 7 } else { 5 };
    let mut slots: Vec<usize> = (0..experts).map(|slot| slot * step % experts).collect();
    slots.extend([0, experts - 1]);
    let mut offsets: Vec<usize> = (0..ranks).collect();
    offsets.push(slots.len());
    let layer = serde_json::json!({ "physical_to_logical": slots, "rank_offsets": offsets });
    serde_json::json!({
        "format": "moekit-placement", "version": 1, "num_logical_experts": experts,
        "num_ranks": ranks, "layers": vec![layer; layers.len()],
    })
}

#[test]
fn three_and_four_ranks_with_every_strategy() {
    let strategies = strategies();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("placement.json");
    on_all(|checkpoint| {
        for ranks in [3, 4] {
            for strategy in &strategies {
                let mut args = vec![
                    "--strategy".to_owned(),
                    strategy.clone(),
                    "--ranks".to_owned(),
                    ranks.to_string(),
                ];
                if strategy == "fixed" {
                    std::fs::write(&file, strewn(checkpoint, ranks).to_string()).unwrap();
                    args.extend(["--set".to_owned(), format!("file={}", file.display())]);
                } else if ranks == 4 {
                    args.extend(["--redundant".to_owned(), "4".to_owned()]);
                }
                let args: Vec<&str> = args.iter().map(String::as_str).collect();
                compare(checkpoint, &args, 1e-4);
            }
        }
    });
}

/// Bytes of the tensors of a layer's routed experts in the files of a checkpoint, biases as f32.
fn stored_bytes(checkpoint: &Path, layer: &Value) -> usize {
    let inside = format!(".layers.{layer}.");
    let files = std::fs::read_dir(checkpoint).unwrap().map(|e| e.unwrap());
    let shards = files.filter(|e| e.file_name().to_string_lossy().starts_with("model"));
    let shards = shards.filter(|e| e.path().extension().is_some_and(|e| e == "safetensors"));
    let mut total = 0;
    for shard in shards {
        let bytes = std::fs::read(shard.path()).unwrap();
        let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        for (name, info) in metadata.tensors() {
            if name.contains(&inside) && name.contains(".experts.") {
                let (start, end) = info.data_offsets;
                let bias = name.ends_with("bias");
                total += if bias { 2 } else { 1 } * (end - start);
            }
        }
    }
    total
}

#[test]
fn inspect_supports_every_layer_and_keeps_weights_packed() {
    on_all(|checkpoint| {
        let report = json(&[
            "inspect",
            checkpoint.to_str().unwrap(),
            "--ranks",
            "3",
            "--json",
        ]);
        for layer in report["layers"].as_array().unwrap() {
            assert!(layer.get("unsupported").is_none(), "{layer}");
            assert!(layer["bytes_per_expert"].as_u64().unwrap() > 0);
            let per_rank = layer["bytes_per_rank"].as_array().unwrap();
            let kept: u64 = per_rank.iter().map(|b| b.as_u64().unwrap()).sum();
            // DBRX and Granite name the tensors of their experts otherwise.
            let stored = stored_bytes(checkpoint, &layer["layer"]);
            assert!(
                stored == 0 || kept as f64 <= 1.05 * stored as f64,
                "{kept} bytes kept of {stored}"
            );
        }
    });
}
