//! Every family and format that the fixture scripts make with the original libraries, on one rank
//! and several, against the reference outputs.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{compare, json, repository};

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

#[test]
fn three_and_four_ranks_with_every_strategy() {
    on_all(|checkpoint| {
        for (strategy, ranks, redundant) in [
            ("linear", "3", "0"),
            ("round_robin", "4", "1"),
            ("eplb", "3", "3"),
        ] {
            let args = [
                "--strategy",
                strategy,
                "--ranks",
                ranks,
                "--redundant",
                redundant,
            ];
            compare(checkpoint, &args, 1e-4);
        }
    });
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
        }
    });
}
