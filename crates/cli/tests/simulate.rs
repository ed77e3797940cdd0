//! `moekit generate`, `compare`, `simulate` and `export`.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::path::{Path, PathBuf};

use common::{failure, json, stdout, tensors};
use serde_json::Value;
use tempfile::TempDir;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A small drifting trace: 40 steps, 3 layers, 16 experts.
fn trace(directory: &TempDir, name: &str) -> PathBuf {
    let path = directory.path().join(name);
    stdout(&[
        "generate",
        "--profile",
        "lognormal:1.0",
        "--experts",
        "16",
        "--layers",
        "3",
        "--steps",
        "40",
        "--tokens",
        "4096",
        "--drift",
        "0.05",
        "--seed",
        "5",
        "--out",
        text(&path),
    ]);
    path
}

#[test]
fn generated_counts_are_a_function_of_the_seed() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (
        trace(&directory, "a.safetensors"),
        trace(&directory, "b.safetensors"),
    );
    assert_eq!(std::fs::read(&a).unwrap(), std::fs::read(&b).unwrap());
    let (shape, counts) = tensors(&a).into_values().next().unwrap();
    assert_eq!(shape, [40, 3, 16]);
    for layer in counts.chunks(16) {
        assert_eq!(layer.iter().sum::<f64>(), 4096.0);
    }
    assert!(
        failure(&["generate", "--experts", "4", "--out", "x.npy"])
            .contains("`--profile` is missing")
    );
    let error = failure(&[
        "generate",
        "--profile",
        "zipff",
        "--experts",
        "4",
        "--out",
        "x.npy",
    ]);
    assert!(
        error.contains("`zipff`") && error.contains("zipf"),
        "{error}"
    );
}

#[test]
fn what_could_not_be_compared_or_simulated_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&directory, "trace.npy");
    let compare = ["compare", "--load", text(&trace), "--ranks", "3"];
    // 16 slots on 3 ranks: others than `eplb` can plan that.
    let refused = stdout(&compare);
    let is_eplb = |line: &&str| line.starts_with("eplb");
    let eplb = refused.lines().find(is_eplb).unwrap();
    assert!(eplb.contains("same number of slots"), "{eplb}");
    let none = failure(&[&compare[..], &["--strategies", "eplb"]].concat());
    assert!(
        none.contains("no strategy has a plan; the first refusal"),
        "{none}"
    );

    let crowd = ["--profile", "uniform", "--experts", "4", "--steps", "2"];
    let crowd = [&["generate"], &crowd[..], &["--flash-crowd", "2:2:0.5"]].concat();
    let out = directory.path().join("crowd.npy");
    let late = failure(&[&crowd[..], &["--out", text(&out)]].concat());
    assert!(late.contains("steps 0 to 1"), "{late}");
    assert!(!out.exists());

    let dump = directory.path().join("dump.safetensors");
    let two = ["--selector", "equal,hash", "--dump", text(&dump)];
    let two = [&["simulate", "--trace", text(&trace)], &two[..]].concat();
    assert!(failure(&two).contains("2 were asked for"));
    let step = directory.path().join("step.json");
    std::fs::write(&step, "[[[1, 2], [3, 4]]]").unwrap();
    let one = failure(&["simulate", "--trace", text(&step), "--window", "1"]);
    assert!(one.contains("2 steps or more"), "{one}");
}

#[test]
fn compare_lists_every_linked_strategy_with_the_bound() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&directory, "t.npy");
    let page = directory.path().join("page.html");
    let report = json(&[
        "compare",
        "--load",
        text(&trace),
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--json",
        "--report",
        text(&page),
    ]);
    let of = |name: &str| -> &Value {
        let list = report["strategies"].as_array().unwrap();
        list.iter()
            .find(|s| s["strategy"] == name)
            .unwrap_or_else(|| panic!("{name} is missing"))
    };
    assert!(
        of("fixed")["error"].as_str().unwrap().contains("file"),
        "it has no placement to fix"
    );
    for name in ["linear", "round_robin", "eplb"] {
        let all = &of(name)["aggregate"];
        let (balance, bound) = (
            all["balancedness"].as_f64().unwrap(),
            all["balancedness_bound"].as_f64().unwrap(),
        );
        assert!(
            0.0 < balance && balance <= bound + 1e-12 && bound <= 1.0,
            "{name}: {all}"
        );
    }
    assert!(
        of("eplb")["aggregate"]["balancedness"].as_f64()
            > of("linear")["aggregate"]["balancedness"].as_f64()
    );
    let page = std::fs::read_to_string(page).unwrap();
    assert!(page.contains("<svg") && !page.contains("http-equiv") && !page.contains("<script"));
    assert!(
        failure(&[
            "compare",
            "--load",
            text(&trace),
            "--strategies",
            "linear,best"
        ])
        .contains("`best`")
    );
}

#[test]
fn layers_may_have_other_slots() {
    let directory = tempfile::tempdir().unwrap();
    let (trace, dump) = (
        directory.path().join("t.npy"),
        directory.path().join("d.safetensors"),
    );
    let shape = [
        "--experts",
        "16",
        "--layers",
        "4",
        "--steps",
        "8",
        "--tokens",
        "4096",
    ];
    let skew = [
        "generate",
        "--profile",
        "zipf:1.2",
        "--seed",
        "3",
        "--out",
        text(&trace),
    ];
    stdout(&[&skew[..], &shape].concat());
    let simulate = [
        "simulate",
        "--trace",
        text(&trace),
        "--ranks",
        "4",
        "--redundant",
        "3",
    ];
    let budgets = [
        "--strategy",
        "adaptive",
        "--set",
        "layer_budgets=true",
        "--window",
        "4",
    ];
    let out = ["--interval", "4", "--json", "--dump", text(&dump)];
    let report = json(&[&simulate[..], &budgets, &out].concat());
    let (plan, bound) = (&report["balance_plan"], &report["bound"]);
    assert!(
        plan.as_f64().unwrap() <= bound.as_f64().unwrap() + 1e-12,
        "{report}"
    );

    let bytes = std::fs::read(&dump).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let of = |name: &str| {
        let tensor = tensors.tensor(name).unwrap();
        let values = tensor.data().chunks(8);
        let values = values.map(|b| i64::from_le_bytes(b.try_into().unwrap()));
        (tensor.shape().to_vec(), values.collect::<Vec<_>>())
    };
    let ((shape, slots), (offsets_shape, offsets)) =
        (of("physical_to_logical"), of("rank_offsets"));
    assert_eq!(
        (&shape[..2], &offsets_shape[..]),
        (&[1, 4][..], &[1, 4, 5][..])
    );
    let mut total = 0;
    for (slots, offsets) in slots.chunks(shape[2]).zip(offsets.chunks(5)) {
        let held = slots.iter().filter(|&&expert| expert >= 0);
        let mut held: Vec<i64> = held.copied().collect();
        assert_eq!(held.len() as i64, offsets[4]);
        total += held.len();
        held.sort_unstable();
        held.dedup();
        assert_eq!(held, (0..16).collect::<Vec<_>>());
    }
    assert_eq!(total, 4 * 19);
}

#[test]
fn simulate_measures_what_the_dump_shows() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&directory, "t.npy");
    let dump = directory.path().join("dump.safetensors");
    let report = json(&[
        "simulate",
        "--trace",
        text(&trace),
        "--ranks",
        "4",
        "--nodes",
        "2",
        "--redundant",
        "4",
        "--strategy",
        "eplb",
        "--selector",
        "equal",
        "--window",
        "10",
        "--interval",
        "10",
        "--dump",
        text(&dump),
        "--json",
    ]);
    assert_eq!(report["simulations"].as_array().unwrap().len(), 1);
    assert_eq!(
        report["simulations"][0]["balance_plan"],
        report["balance_plan"]
    );
    let number = |key: &str| {
        report[key]
            .as_f64()
            .unwrap_or_else(|| panic!("{key} is missing"))
    };
    for key in [
        "balance_plan",
        "balance_next",
        "balance_step_mean",
        "balance_step_p1",
        "bound",
        "certificate_gap_mean",
        "slots_moved_fraction",
        "off_node_fraction",
    ] {
        assert!((0.0..=1.0).contains(&number(key)), "{key}");
    }
    assert!(number("plan_seconds_per_interval") > 0.0 && number("split_micros_per_layer") > 0.0);

    let dump = tensors(&dump);
    assert_eq!(dump["rank_load"].0, [30, 3, 4]);
    assert_eq!(dump["physical_to_logical"].0, [3, 3, 20]);
    let balances: Vec<f64> = dump["rank_load"]
        .1
        .chunks(4)
        .map(|ranks| ranks.iter().sum::<f64>() / 4.0 / ranks.iter().copied().fold(0.0, f64::max))
        .collect();
    let mean = balances.iter().sum::<f64>() / balances.len() as f64;
    assert!((mean - number("balance_step_mean")).abs() < 1e-6, "{mean}");
}

#[test]
fn simulations_side_by_side() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&directory, "t.npy");
    let page = directory.path().join("page.html");
    let base = [
        "simulate",
        "--trace",
        text(&trace),
        "--ranks",
        "4",
        "--window",
        "10",
        "--interval",
        "10",
    ];
    let more = [
        "--strategies",
        "linear,eplb",
        "--redundant",
        "4",
        "--selector",
        "equal,hash,waterfill,waterfill-previous",
        "--expert-bytes",
        "1000",
        "--report",
        text(&page),
        "--json",
    ];
    let report = json(&[&base[..], &more].concat());
    let simulations = report["simulations"].as_array().unwrap();
    assert_eq!(simulations.len(), 8);
    let of = |strategy: &str, selector: &str, key: &str| {
        let one = |s: &&Value| s["strategy"] == strategy && s["selector"] == selector;
        simulations.iter().find(one).unwrap()[key].as_f64().unwrap()
    };
    for strategy in ["linear", "eplb"] {
        let step = |selector| of(strategy, selector, "balance_step_mean");
        assert!(step("waterfill") > step("equal") && step("equal") > step("hash"));
        // No more than rounding to whole tokens is left.
        assert!(of(strategy, "waterfill", "certificate_gap_mean") < 2e-3);
    }
    let moved = of("eplb", "equal", "slots_moved");
    assert!(moved > 0.0 && of("eplb", "equal", "bytes_moved") == 1000.0 * moved);
    assert!(of("eplb", "waterfill-previous", "migration_rounds_mean") > 0.0);
    assert!(report.get("balance_plan").is_none());
    assert!(
        std::fs::read_to_string(&page)
            .unwrap()
            .matches("<svg")
            .count()
            >= 11
    );

    let simulate =
        |args: &[&str]| failure(&[&["simulate", "--trace", text(&trace)], args].concat());
    assert!(simulate(&["--window", "0"]).contains("the window"));
    assert!(simulate(&["--window", "40"]).contains("the window"));
    let error = simulate(&["--selector", "best"]);
    assert!(
        error.contains("`best`; known are equal, hash, row_hash"),
        "{error}"
    );
    let dump = directory.path().join("d.safetensors");
    let error = simulate(&[
        "--window",
        "10",
        "--selector",
        "equal,hash",
        "--dump",
        text(&dump),
    ]);
    assert!(
        error.contains("2 were asked for") && !dump.exists(),
        "{error}"
    );
    let flat = directory.path().join("flat.json");
    std::fs::write(&flat, "[[1, 2]]").unwrap();
    assert!(failure(&["simulate", "--trace", text(&flat)]).contains("no steps to simulate"));
}

/// Paths are bytes on Unix, and JSON is text.
#[cfg(unix)]
#[test]
fn a_path_that_is_no_text_is_written_to() {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStringExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory
        .path()
        .join(OsString::from_vec(b"t\xff.npy".to_vec()));
    let args = [
        "generate",
        "--profile",
        "uniform",
        "--experts",
        "4",
        "--json",
        "--out",
    ];
    let args: Vec<&OsStr> = args
        .iter()
        .map(OsStr::new)
        .chain([path.as_os_str()])
        .collect();
    assert_eq!(json(&args)["shape"], serde_json::json!([1, 1, 4]));
    assert!(path.exists());

    let config = directory.path().join("c.toml");
    std::fs::write(&config, "seed = 1").unwrap();
    let args: Vec<&OsStr> = args
        .into_iter()
        .chain([OsStr::new("--config"), config.as_os_str()])
        .collect();
    assert!(failure(&args).contains("a configuration file cannot hold"));
}

#[test]
fn placements_go_to_other_engines() {
    let directory = tempfile::tempdir().unwrap();
    let trace = trace(&directory, "t.npy");
    let placement = directory.path().join("p.json");
    stdout(&[
        "plan",
        "--load",
        text(&trace),
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--strategy",
        "eplb",
        "--out",
        text(&placement),
    ]);
    let sglang: Value = serde_json::from_str(&stdout(&[
        "export",
        "--placement",
        text(&placement),
        "--engine",
        "sglang",
    ]))
    .unwrap();
    assert_eq!(
        sglang["physical_to_logical_map"].as_array().unwrap().len(),
        3
    );
    let yaml = stdout(&[
        "export",
        "--placement",
        text(&placement),
        "--engine",
        "tensorrt-llm",
        "--model-layers",
        "5",
        "--first-moe-layer",
        "2",
    ]);
    assert!(
        yaml.contains("num_slots: 20") && yaml.contains("  4: ["),
        "{yaml}"
    );
    let error = failure(&[
        "export",
        "--placement",
        text(&placement),
        "--engine",
        "vllm",
    ]);
    assert!(error.contains("vLLM"), "it cannot hold replicas: {error}");
    let error = failure(&[
        "export",
        "--placement",
        text(&placement),
        "--engine",
        "sglang",
        "--model-layers",
        "18446744073709551615",
    ]);
    assert!(
        error.contains("the number of layers of the model is 18446744073709551615"),
        "{error}"
    );
    assert!(
        failure(&[
            "export",
            "--placement",
            text(&placement),
            "--engine",
            "other"
        ])
        .contains("sglang")
    );
}
