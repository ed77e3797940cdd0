//! `moekit plan`: load files, placements, reports.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{failure, json, stdout};
use serde_json::{Value, json};
use tempfile::TempDir;

const LOAD: &str =
    "[[90,132,40,61,104,165,39,4,73,56,183,86],[20,107,104,64,19,197,187,157,172,86,16,27]]";

struct Files(TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.path(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn read(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The example of DeepSeek's EPLB repository, through files and flags.
#[test]
fn deepseeks_example() {
    let files = Files::new();
    let load = files.write("load.json", LOAD);
    let out = files.path("placement.json");
    let report = json(&[
        "plan",
        "--load",
        &load,
        "--ranks",
        "8",
        "--nodes",
        "2",
        "--groups",
        "4",
        "--slots",
        "16",
        "--strategy",
        "eplb",
        "--out",
        out.to_str().unwrap(),
        "--json",
    ]);
    let placement = read(&out);
    assert_eq!(placement["format"], "moekit-placement");
    assert_eq!(placement["version"], 1);
    assert_eq!(
        (&placement["num_logical_experts"], &placement["num_ranks"]),
        (&json!(12), &json!(8))
    );
    assert_eq!(
        placement["layers"][0],
        json!({"physical_to_logical": [5,6,5,7,8,4,3,4,10,9,10,2,0,1,11,1],
               "rank_offsets": [0,2,4,6,8,10,12,14,16]})
    );
    let layer = &report["layers"][0];
    // Ranks hold (5,6) (5,7) (8,4) (3,4) (10,9) (10,2) (0,1) (11,1) with half of 4, 5, 10 and 1.
    assert_eq!(layer["max_load"], json!(156.0));
    assert_eq!(layer["mean_load"], json!(1033.0 / 8.0));
    assert_eq!(layer["balancedness"], json!(1033.0 / 8.0 / 156.0));
    assert_eq!(layer["duplicates"], 0);
    assert!(report["plan_seconds"].as_f64().unwrap() > 0.0);
    assert!(report["aggregate"]["balancedness"].as_f64().unwrap() > 0.8);
    assert!(report.get("placement").is_none(), "it is in the file");
}

#[test]
fn what_was_planned_can_be_fixed_and_compared() {
    let files = Files::new();
    let load = files.write("load.json", &format!("{{\"logical_count\": {LOAD}}}"));
    let out = files.path("p.json").display().to_string();
    let eplb = [
        "plan",
        "--load",
        &load,
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--strategy",
        "eplb",
    ];
    stdout(&[&eplb[..], &["--out", &out]].concat());

    let setting = format!("file={out}");
    let fixed = [
        "plan",
        "--load",
        &load,
        "--ranks",
        "4",
        "--strategy",
        "fixed",
        "--set",
        &setting,
    ];
    let report = json(&[&fixed[..], &["--current", &out, "--json"]].concat());
    assert_eq!(report["placement"], read(Path::new(&out)));
    assert_eq!(report["aggregate"]["slots_moved"], 0);

    let linear = json(&[
        "plan",
        "--load",
        &load,
        "--ranks",
        "4",
        "--redundant",
        "4",
        "--current",
        &out,
        "--json",
    ]);
    assert!(linear["aggregate"]["slots_moved"].as_u64().unwrap() > 0);
    let wrong_ranks = failure(&[
        "plan",
        "--load",
        &load,
        "--ranks",
        "3",
        "--strategy",
        "fixed",
        "--set",
        &setting,
    ]);
    assert!(
        wrong_ranks.contains("ranks: got 4, expected 3"),
        "{wrong_ranks}"
    );
}

#[test]
fn without_out_the_placement_is_stdout() {
    let files = Files::new();
    let load = files.write("load.csv", "1,2,3,4\n4,3,2,1\n");
    let placement: Value =
        serde_json::from_str(&stdout(&["plan", "--load", &load, "--ranks", "2"])).unwrap();
    assert_eq!(
        placement["layers"][1]["physical_to_logical"],
        json!([0, 1, 2, 3])
    );
}

#[test]
fn a_configuration_holds_the_flags_and_flags_win() {
    let files = Files::new();
    files.write("load.json", LOAD);
    let config = files.write(
        "plan.toml",
        "load = 'load.json'\nranks = 4\nredundant = 4\nstrategy = 'eplb'\njson = true\n[set]\nmode = 'global'\n",
    );
    let report = json(&["plan", "--config", &config]);
    assert_eq!(
        (&report["strategy"], &report["num_ranks"]),
        (&json!("eplb"), &json!(4))
    );
    let report = json(&[
        "plan",
        "--config",
        &config,
        "--strategy",
        "linear",
        "--ranks",
        "2",
    ]);
    assert_eq!(
        (&report["strategy"], &report["num_ranks"]),
        (&json!("linear"), &json!(2))
    );

    let typo = files.write("typo.toml", "load = 'load.json'\nrank = 4\n");
    let error = failure(&["plan", "--config", &typo]);
    assert!(
        error.contains("typo.toml") && error.contains("unknown key `rank`"),
        "{error}"
    );
    let both = files.write(
        "both.toml",
        "load = 'load.json'\nslots = 13\nredundant = 1\n",
    );
    assert!(failure(&["plan", "--config", &both]).contains("exclude each other"));
}

#[test]
fn faults_are_named_and_nothing_is_half_written() {
    let files = Files::new();
    let load = files.write("load.json", LOAD);
    let out = files.path("p.json");
    let out_arg = out.to_str().unwrap();
    let plan = |args: &[&str]| failure(&[&["plan", "--out", out_arg], args].concat());

    assert!(plan(&[]).contains("`--load` is missing"));
    assert!(plan(&["--load", "nowhere.json"]).contains("nowhere.json"));
    let error = plan(&["--load", &load, "--ranks", "5", "--strategy", "eplb"]);
    assert!(error.contains("12 slots on 5 ranks"), "{error}");
    assert!(plan(&["--load", &load, "--slots", "11"]).contains("11 slots cannot hold 12"));
    assert!(plan(&["--load", &load, "--groups", "5"]).contains("must divide the 12"));
    for (name, text, fault) in [
        ("ragged.json", "[[1,2],[3]]", "a list of 1 where"),
        ("negative.json", "[[1,-2]]", "-2"),
        ("nan.csv", "1,NaN\n", "NaN"),
        ("empty.json", "[]", "empty.json"),
        ("truncated.json", "[[1,2", "truncated.json"),
        ("words.json", "{\"x\": 1}", "words.json"),
        ("load.xyz", "1", "load.xyz"),
    ] {
        let path = files.write(name, text);
        let error = plan(&["--load", &path]);
        assert!(error.contains(fault), "{name}: {error}");
    }
    assert!(!out.exists());

    let directory = files.path("missing/p.json").display().to_string();
    assert!(failure(&["plan", "--load", &load, "--out", &directory]).contains("missing"));
}

#[test]
fn strategies_describe_themselves() {
    let list = json(&["strategies", "list", "--json"]);
    let names: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|s| s["name"].as_str().unwrap())
        .collect();
    for name in ["eplb", "fixed", "linear", "round_robin"] {
        assert!(names.contains(&name), "{names:?}");
        assert!(stdout(&["strategies", "list"]).contains(name));
        assert!(json(&["strategies", "schema", name]).is_object());
        let example = stdout(&["strategies", "example", name]);
        assert!(
            example.contains(&format!("strategy = \"{name}\"")),
            "{example}"
        );
    }
    assert!(failure(&["strategies", "schema", "nothing"]).contains("linked are:"));
}
