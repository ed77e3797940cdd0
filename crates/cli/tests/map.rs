//! `moekit map` against vLLM's `determine_expert_map`, written out.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use common::{failure, json, stdout};
use serde_json::{Value, json};

struct Expected {
    expert_map: Vec<i64>,
    local_to_global: Vec<usize>,
}

/// vLLM's map of one rank, extended by the shared experts.
fn vllm(strategy: &str, experts: usize, ranks: usize, rank: usize, shared: usize) -> Expected {
    let (base, rem) = (experts / ranks, experts % ranks);
    let mut local_to_global: Vec<usize> = match strategy {
        "linear" => {
            let start = rank * base + rank.min(rem);
            (start..start + base + usize::from(rank < rem)).collect()
        }
        _ => (rank..experts).step_by(ranks).collect(),
    };
    local_to_global.extend(experts..experts + shared);
    let mut expert_map = vec![-1; experts + shared];
    for (local, &global) in local_to_global.iter().enumerate() {
        expert_map[global] = local as i64;
    }
    Expected {
        expert_map,
        local_to_global,
    }
}

#[test]
fn linear_and_round_robin_are_vllms() {
    for strategy in ["linear", "round_robin"] {
        for (experts, ranks, shared) in [(8, 2, 0), (8, 3, 1), (7, 4, 2), (3, 5, 0), (1, 1, 1)] {
            let report = json(&[
                "map",
                "--json",
                "--strategy",
                strategy,
                "--experts",
                &experts.to_string(),
                "--ranks",
                &ranks.to_string(),
                "--shared",
                &shared.to_string(),
            ]);
            let mut global_to_physical = vec![0; experts];
            let mut slot = 0;
            for rank in 0..ranks {
                let expected = vllm(strategy, experts, ranks, rank, shared);
                let got = &report["ranks"][rank];
                let mut mask: Vec<i64> = expected
                    .expert_map
                    .iter()
                    .map(|&l| i64::from(l >= 0))
                    .collect();
                mask.push(0);
                assert_eq!(got["rank"], json!(rank));
                assert_eq!(
                    got["num_local_experts"],
                    json!(expected.local_to_global.len())
                );
                assert_eq!(got["expert_map"], json!(expected.expert_map));
                assert_eq!(got["expert_mask"], json!(mask));
                assert_eq!(got["local_to_global"], json!(expected.local_to_global));
                for &global in expected.local_to_global.iter().filter(|&&g| g < experts) {
                    global_to_physical[global] = slot;
                    slot += 1;
                }
            }
            assert_eq!(
                numbers(&report["global_to_physical"])[..experts],
                global_to_physical
            );
            for (global, &physical) in numbers(&report["global_to_physical"]).iter().enumerate() {
                assert_eq!(numbers(&report["physical_to_global"])[physical], global);
            }
            assert_eq!(
                numbers(&report["replica_counts"]),
                vec![1; experts + shared]
            );
        }
    }
}

fn numbers(value: &Value) -> Vec<usize> {
    value
        .as_array()
        .unwrap()
        .iter()
        .map(|v| v.as_u64().unwrap() as usize)
        .collect()
}

#[test]
fn redundant_experts_show_in_every_table() {
    let report = json(&[
        "map",
        "--experts",
        "4",
        "--ranks",
        "2",
        "--redundant",
        "2",
        "--json",
    ]);
    assert_eq!(report["physical_to_global"], json!([0, 1, 2, 3, 0, 1]));
    assert_eq!(report["replica_counts"], json!([2, 2, 1, 1]));
    assert_eq!(report["ranks"][1]["expert_map"], json!([1, 2, -1, 0]));
}

#[test]
fn a_table_for_people() {
    let text = stdout(&[
        "map",
        "--experts",
        "4",
        "--ranks",
        "2",
        "--strategy",
        "round_robin",
    ]);
    assert!(
        text.contains("rank 1: 2 local experts") && text.contains("expert_map         -1 0 -1 1"),
        "{text}"
    );
}

#[test]
fn a_layer_of_a_placement() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("p.json");
    let path = file.to_str().unwrap();
    let layers = r#"[{"physical_to_logical": [0, 1, 2], "rank_offsets": [0, 1, 3]},
        {"physical_to_logical": [2, 1, 0, 2], "rank_offsets": [0, 2, 4]}]"#;
    let text = format!(
        r#"{{"format": "moekit-placement", "version": 1, "num_logical_experts": 3, "num_ranks": 2,
        "layers": {layers}}}"#
    );
    std::fs::write(&file, text).unwrap();
    let map = |args: &[&str]| json(&[&["map", "--placement", path, "--json"], args].concat());
    assert_eq!(map(&[])["physical_to_global"], json!([0, 1, 2]));
    let second = map(&["--layer", "1"]);
    assert_eq!(second["physical_to_global"], json!([2, 1, 0, 2]));
    assert_eq!(second["ranks"][1]["expert_map"], json!([0, -1, 1]));

    let error = |args: &[&str]| failure(&[&["map", "--placement", path], args].concat());
    assert!(error(&["--layer", "2"]).contains("`--layer 2` is none of the 2 of"));
    for (flag, value) in [
        ("--experts", "3"),
        ("--ranks", "2"),
        ("--strategy", "linear"),
        ("--set", "x=1"),
        ("--redundant", "0"),
    ] {
        let error = error(&[flag, value]);
        assert!(error.contains(flag) && error.contains("exclude"), "{error}");
    }
    assert!(failure(&["map", "--experts", "3", "--layer", "0"]).contains("--placement"));
}

#[test]
fn flags_and_a_file_may_say_what_excludes_each_other() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).display().to_string();
    let (load, placement, config) = (path("load.json"), path("p.json"), path("map.toml"));
    std::fs::write(&load, "[[1, 2, 3, 4]]").unwrap();
    stdout(&["plan", "--load", &load, "--ranks", "2", "--out", &placement]);
    std::fs::write(&config, "experts = 8\nranks = 4\nstrategy = 'round_robin'").unwrap();
    let report = json(&[
        "map",
        "--config",
        &config,
        "--placement",
        &placement,
        "--json",
    ]);
    assert_eq!(report["ranks"].as_array().unwrap().len(), 2);
    std::fs::write(&config, "placement = 'p.json'").unwrap();
    let report = json(&["map", "--config", &config, "--experts", "3", "--json"]);
    assert_eq!(numbers(&report["replica_counts"]), [1, 1, 1]);
}

#[test]
fn faults_are_named() {
    assert!(failure(&["map"]).contains("`--experts` is missing"));
    assert!(failure(&["map", "--experts", "0"]).contains("at least 1 logical expert, got 0"));
    assert!(failure(&["map", "--experts", "4", "--ranks", "0"]).contains("at least 1 rank, got 0"));
    assert!(
        failure(&["map", "--experts", "4", "--nodes", "2"])
            .contains("2 nodes cannot share 1 ranks")
    );
    let error = failure(&["map", "--experts", "4", "--strategy", "round_robbin"]);
    assert!(
        error.contains("did you mean `round_robin`?") && error.contains("link_plugins!"),
        "{error}"
    );
    let error = failure(&["map", "--experts", "4", "--set", "x=1"]);
    assert!(
        error.contains("settings of strategy `linear`") && error.contains("`x`"),
        "{error}"
    );
    for flag in ["--experts", "--ranks", "--redundant", "--shared"] {
        let mut args = vec!["map", flag, "99999999999999"];
        if flag != "--experts" {
            args.extend(["--experts", "4"]);
        }
        let error = failure(&args);
        assert!(error.contains("are more than the"), "{flag}: {error}");
    }
}
