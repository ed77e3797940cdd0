//! `moekit run` against the outputs of the original models.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{compare, example, failure, json, shared, stdout, tensors};

const RANKS: [usize; 5] = [1, 2, 3, 5, 8];

fn checkpoints() -> Vec<PathBuf> {
    let mut all = vec![example("mixtral-tiny"), example("qwen3_moe-tiny")];
    all.extend(
        ["mixtral-bf16", "qwen3_moe-bf16"]
            .iter()
            .filter_map(|name| shared(name)),
    );
    all
}

#[test]
fn linear_and_round_robin_on_any_number_of_ranks() {
    for checkpoint in checkpoints() {
        for strategy in ["linear", "round_robin", "eplb"] {
            for ranks in RANKS {
                for redundant in ["0", "3"] {
                    let ranks = ranks.to_string();
                    let args = [
                        "--strategy",
                        strategy,
                        "--ranks",
                        &ranks,
                        "--redundant",
                        redundant,
                    ];
                    compare(&checkpoint, &args, 1e-4);
                }
            }
        }
    }
}

#[test]
fn bf16_activations() {
    for checkpoint in checkpoints() {
        for ranks in ["1", "3"] {
            compare(&checkpoint, &["--dtype", "bf16", "--ranks", ranks], 1e-2);
        }
    }
}

/// A load with one hot expert per layer, as a JSON file.
fn load(directory: &Path, experts: usize) -> String {
    let row = |hot: usize| -> Vec<usize> {
        (0..experts)
            .map(|e| if e == hot { 500 } else { 10 + e })
            .collect()
    };
    let path = directory.join("load.json");
    std::fs::write(
        &path,
        serde_json::to_string(&[row(1), row(experts - 1)]).unwrap(),
    )
    .unwrap();
    path.display().to_string()
}

#[test]
fn eplb_with_a_load_and_its_plan_fixed() {
    let directory = tempfile::tempdir().unwrap();
    for (name, experts) in [("mixtral-tiny", 8), ("qwen3_moe-tiny", 16)] {
        let load = load(directory.path(), experts);
        for ranks in RANKS {
            // As many redundant experts as make the slots even, and one more per rank.
            let redundant = (experts.next_multiple_of(ranks) - experts + ranks).to_string();
            let ranks = ranks.to_string();
            let group = [
                "--ranks",
                &ranks,
                "--redundant",
                &redundant,
                "--load",
                &load,
            ];
            compare(
                &example(name),
                &[&["--strategy", "eplb"], &group[..]].concat(),
                1e-4,
            );

            let placement = directory.path().join("p.json").display().to_string();
            let plan = [
                &["plan", "--strategy", "eplb", "--out", &placement],
                &group[..],
            ]
            .concat();
            stdout(&plan);
            let setting = format!("file={placement}");
            let fixed = ["--strategy", "fixed", "--set", &setting, "--ranks", &ranks];
            compare(&example(name), &fixed, 1e-4);
        }
    }
}

#[test]
fn every_replica_selector_gives_the_same_result() {
    for selector in [
        "row_hash",
        "round_robin",
        "local_first",
        "waterfill",
        "waterfill-previous",
    ] {
        let args = [
            "--ranks",
            "3",
            "--nodes",
            "2",
            "--redundant",
            "7",
            "--selector",
            selector,
        ];
        compare(&example("qwen3_moe-tiny"), &args, 1e-4);
    }
}

#[test]
fn the_report_tells_what_happened() {
    let report = compare(
        &example("mixtral-tiny"),
        &["--ranks", "3", "--redundant", "1"],
        1e-4,
    );
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 2);
    for layer in layers {
        let numbers = |key: &str| -> Vec<u64> {
            layer[key]
                .as_array()
                .unwrap()
                .iter()
                .map(|v| v.as_u64().unwrap())
                .collect()
        };
        assert_eq!(numbers("experts_per_rank"), [3, 3, 3]);
        assert_eq!(numbers("tokens_per_rank").iter().sum::<u64>(), 17 * 2);
        let max = *numbers("tokens_per_rank").iter().max().unwrap() as f64;
        let balancedness = layer["balancedness"].as_f64().unwrap();
        assert!((balancedness - 34.0 / 3.0 / max).abs() < 1e-9);
        assert!(layer["seconds"].as_f64().unwrap() > 0.0);
        assert!(layer["tokens_per_second"].as_f64().unwrap() > 0.0);
        assert!(layer["max_difference_from_one_rank"].as_f64().unwrap() < 1e-5);
    }
}

#[test]
fn seeded_tokens_and_chosen_layers() {
    let checkpoint = example("mixtral-tiny");
    let directory = tempfile::tempdir().unwrap();
    let output = |name: &str, seed: &str| {
        let path = directory.path().join(name);
        stdout(&[
            "run",
            checkpoint.to_str().unwrap(),
            "--tokens",
            "5",
            "--seed",
            seed,
            "--layers",
            "1",
            "--output",
            path.to_str().unwrap(),
        ]);
        tensors(&path)
    };
    let (first, again, other) = (output("a", "1"), output("b", "1"), output("c", "2"));
    assert_eq!(
        first.keys().collect::<Vec<_>>(),
        [
            "layers.1.output",
            "layers.1.topk_ids",
            "layers.1.topk_weights"
        ]
    );
    assert_eq!(first["layers.1.output"].0, [5, 64]);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

#[test]
fn no_tokens_and_fewer_tokens_than_ranks() {
    let checkpoint = example("mixtral-tiny");
    for tokens in ["0", "1", "2"] {
        let report = json(&[
            "run",
            checkpoint.to_str().unwrap(),
            "--tokens",
            tokens,
            "--ranks",
            "4",
            "--json",
        ]);
        assert_eq!(report["layers"][0]["tokens"].to_string(), tokens);
    }
}

#[test]
fn the_quickstart_runs() {
    let text = stdout(&["run", "examples/quickstart.toml"]);
    assert!(
        text.contains("round_robin") && text.contains("3 ranks"),
        "{text}"
    );
}

/// The quickstart names tokens and a seed, which an input excludes.
#[test]
fn an_input_replaces_the_random_tokens_of_a_file() {
    let input = example("qwen3_moe-tiny").join("reference.safetensors");
    let report = json(&[
        "run",
        "examples/quickstart.toml",
        "--input",
        input.to_str().unwrap(),
        "--json",
    ]);
    let given = tensors(&input)["layers.0.input"].0[0];
    assert_eq!(report["layers"][0]["tokens"], given);
}

/// Tokens of the size that the configuration claims would take a terabyte.
#[test]
fn a_hidden_size_that_no_tensor_has_is_refused_before_tokens_are_made() {
    let directory = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(example("mixtral-tiny")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), directory.path().join(entry.file_name())).unwrap();
    }
    let config = directory.path().join("config.json");
    let mut text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    text["hidden_size"] = (1u64 << 31).into();
    std::fs::write(&config, text.to_string()).unwrap();
    for subcommand in ["run", "live"] {
        let error = failure(&[subcommand, directory.path().to_str().unwrap()]);
        assert!(
            error.contains("gate.weight` has shape [8, 64]"),
            "{subcommand}: {error}"
        );
    }
}

#[test]
fn inspect_tells_sizes() {
    let checkpoint = example("qwen3_moe-tiny");
    let report = json(&[
        "inspect",
        checkpoint.to_str().unwrap(),
        "--ranks",
        "3",
        "--json",
    ]);
    let layer = &report["layers"][0];
    assert_eq!(layer["num_experts"], 16);
    assert_eq!(layer["top_k"], 4);
    // Three bf16 matrices of 64 x 16.
    assert_eq!(layer["bytes_per_expert"], 3 * 64 * 16 * 2);
    let bytes = 3 * 64 * 16 * 2;
    assert_eq!(
        layer["bytes_per_rank"],
        serde_json::json!([6 * bytes, 5 * bytes, 5 * bytes])
    );
    assert!(stdout(&["inspect", checkpoint.to_str().unwrap()]).contains("16 experts"));
}

/// A checkpoint without some of the tensors of another one.
fn without(checkpoint: &Path, part: &str) -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| (checkpoint.join(name), directory.path().join(name));
    let (config, copy) = file("config.json");
    std::fs::copy(config, copy).unwrap();
    let (model, copy) = file("model.safetensors");
    let bytes = std::fs::read(model).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.tensors().into_iter();
    let kept = tensors.filter(|(name, _)| !name.contains(part));
    std::fs::write(copy, safetensors::serialize(kept, None).unwrap()).unwrap();
    directory
}

#[test]
fn inspect_looks_at_the_gate_and_its_groups() {
    let fixtures = common::repository().join("tests/fixtures/checkpoints");
    let deepseek = fixtures.join("deepseek_v3-bf16");
    for (checkpoint, part, missing) in [
        (&deepseek, ".gate.weight", "mlp.gate.weight` is missing"),
        (
            &deepseek,
            "correction_bias",
            "mlp.gate.e_score_correction_bias` is missing",
        ),
        (
            &fixtures.join("gpt_oss-bf16"),
            "router.bias",
            "mlp.router.bias` is missing",
        ),
        (
            &fixtures.join("qwen2_moe-bf16"),
            "shared_expert_gate",
            "shared_expert_gate.weight` is missing",
        ),
    ] {
        let directory = without(checkpoint, part);
        let report = json(&["inspect", directory.path().to_str().unwrap(), "--json"]);
        let unsupported = report["layers"][0]["unsupported"].as_str().unwrap();
        assert!(unsupported.contains(missing), "{unsupported}");
    }
    let path = deepseek.to_str().unwrap();
    let groups = [
        "--ranks",
        "4",
        "--nodes",
        "2",
        "--strategy",
        "eplb",
        "--set",
        "mode=hierarchical",
    ];
    let report = json(&[&["inspect", path, "--json"], &groups[..]].concat());
    assert!(report["layers"][0].get("unsupported").is_none(), "{report}");
}

#[test]
fn faults_are_named() {
    let checkpoint = example("mixtral-tiny");
    let path = checkpoint.to_str().unwrap();
    assert!(failure(&["run", "nowhere"]).contains("nowhere"));
    assert!(failure(&["inspect", "nowhere"]).contains("nowhere"));
    assert!(failure(&["run", path, "--layers", "7"]).contains("layer 7"));
    assert!(failure(&["run", path, "--layers", "x"]).contains('x'));
    let error = failure(&["run", path, "--layers", "0,1,0"]);
    assert!(
        error.contains("`--layers 0,1,0` names layer 0 twice"),
        "{error}"
    );
    let error = failure(&["run", path, "--shared", "fused"]);
    assert!(
        error.contains("none of the layers to run has shared experts"),
        "{error}"
    );
    assert!(failure(&["run", path, "--ranks", "0"]).contains("at least 1 rank"));
    assert!(failure(&["run", path, "--ranks", "5000"]).contains("`--ranks 5000`: 1 to 1024"));
    assert!(failure(&["run", path, "--threads", "0"]).contains("threads"));
    assert!(failure(&["run", path, "--selector", "best"]).contains("`best`"));
    let error = failure(&["run", path, "--ranks", "3", "--strategy", "fixed"]);
    assert!(
        error.contains("needs either `file` or `placement`"),
        "{error}"
    );

    let directory = tempfile::tempdir().unwrap();
    let load = directory.path().join("load.json");
    std::fs::write(&load, "[[1,2,3]]").unwrap();
    let error = failure(&["run", path, "--load", load.to_str().unwrap()]);
    assert!(
        error.contains("layers in the load: got 1, expected 2"),
        "{error}"
    );

    let input = example("qwen3_moe-tiny").join("config.json");
    assert!(failure(&["run", path, "--input", input.to_str().unwrap()]).contains("config.json"));
}

#[test]
fn shared_experts_may_be_fused() {
    for name in ["deepseek_v3-bf16", "ernie4_5_moe-bf16"] {
        let checkpoint = common::repository()
            .join("tests/fixtures/checkpoints")
            .join(name);
        for ranks in ["1", "3"] {
            compare(&checkpoint, &["--shared", "fused", "--ranks", ranks], 1e-4);
        }
    }
    let qwen = common::repository().join("tests/fixtures/checkpoints/qwen2_moe-bf16");
    let error = failure(&["run", qwen.to_str().unwrap(), "--shared", "fused"]);
    assert!(
        error.contains("shared"),
        "a gated shared expert cannot be fused: {error}"
    );
}

/// Rounding activations to 8 or 4 bits changes the output, and not by much.
#[test]
fn activation_quantization_is_emulated() {
    let fixtures = common::repository().join("tests/fixtures/checkpoints");
    let directory = tempfile::tempdir().unwrap();
    let output = |checkpoint: &Path, mode: &str| {
        let path = directory.path().join(mode);
        let input = checkpoint.join("reference.safetensors");
        stdout(&[
            "run",
            checkpoint.to_str().unwrap(),
            "--input",
            input.to_str().unwrap(),
            "--activation-quant",
            mode,
            "--output",
            path.to_str().unwrap(),
        ]);
        tensors(&path).remove("layers.0.output").unwrap().1
    };
    for (name, most) in [
        ("qwen3_moe-modelopt-fp8", 0.1),
        ("qwen3_moe-ct-int8", 0.1),
        ("qwen3_moe-modelopt-nvfp4-experts-only", 0.5),
    ] {
        let checkpoint = fixtures.join(name);
        let (off, emulated) = (output(&checkpoint, "off"), output(&checkpoint, "emulate"));
        let error = common::relative_error(&emulated, &off);
        assert!(error > 1e-5 && error < most, "{name}: {error}");
    }
    let plain = example("mixtral-tiny");
    assert_eq!(
        output(&plain, "off"),
        output(&plain, "emulate"),
        "nothing says how to quantize"
    );
}

#[cfg(not(feature = "mpi"))]
#[test]
fn a_command_without_mpi_says_how_to_get_it() {
    let checkpoint = example("mixtral-tiny");
    let text = failure(&["run", checkpoint.to_str().unwrap(), "--comm", "mpi"]);
    assert!(text.contains("build it with `--features mpi`"), "{text}");
}
