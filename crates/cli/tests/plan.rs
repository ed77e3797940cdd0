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
fn a_plan_tells_the_way_from_the_placement_in_force() {
    let files = Files::new();
    let load = files.write("load.csv", "1,2,3,4\n4,3,2,1\n");
    // Layer 0 is as `linear` places it, layer 1 has the experts of ranks 0 and 3 exchanged.
    let current = files.write(
        "current.json",
        r#"{"format": "moekit-placement", "version": 1, "num_logical_experts": 4, "num_ranks": 4,
            "layers": [{"physical_to_logical": [0, 1, 2, 3], "rank_offsets": [0, 1, 2, 3, 4]},
                       {"physical_to_logical": [3, 1, 2, 0], "rank_offsets": [0, 1, 2, 3, 4]}]}"#,
    );
    let page = files.path("page.html").display().to_string();
    let base = ["plan", "--load", &load, "--current", &current];
    let four = ["--ranks", "4", "--nodes", "2", "--expert-bytes", "2048"];
    let report = json(&[&base[..], &four, &["--json", "--report", &page]].concat());
    let migration = &report["migration"];
    for (key, expected) in [
        ("unchanged", 6),
        ("copied", 0),
        ("same_node", 0),
        ("cross_node", 2),
        ("checkpoint_reads", 0),
        ("rounds", 1),
        ("peak_staging", 1),
        ("link_bytes", 4096),
        ("expert_bytes", 2048),
    ] {
        assert_eq!(migration[key], expected, "{key}");
    }
    assert_eq!(
        migration["links"][0],
        json!({"from": 0, "to": 3, "link": "cross_node", "experts": 1, "bytes": 2048})
    );
    assert_eq!(migration["ranks"].as_array().unwrap().len(), 2);
    assert_eq!(migration["layers"][0]["rounds"], 0);
    assert_eq!(migration["layers"][1]["rounds"], 1);
    let page = fs::read_to_string(page).unwrap();
    assert!(page.contains("2 from another node") && page.matches("<svg").count() == 4);

    let out = files.path("p.json").display().to_string();
    let text = stdout(&[&base[..], &four, &["--out", &out]].concat());
    assert!(
        text.contains("4.00 KiB between ranks, at most 2.00 KiB"),
        "{text}"
    );
    // A group that shrinks: ranks 2 and 3 of the placement in force send all that they hold.
    let report = json(&[&base[..], &["--ranks", "2", "--json"]].concat());
    assert_eq!(report["migration"]["link_bytes"], Value::Null);
    assert_eq!(report["migration"]["same_node"], 7);
    assert_eq!(report["migration"]["only_on_leaving_ranks"], 4);
    let text = stdout(&[&base[..], &["--ranks", "2", "--out", &out]].concat());
    assert!(
        text.contains("4 experts were on no rank that stays"),
        "{text}"
    );

    for flag in ["--expert-bytes", "--budget-slots", "--budget-bytes"] {
        let error = failure(&["plan", "--load", &load, flag, "1"]);
        assert!(error.contains("needs `current`"), "{error}");
    }
    assert!(
        failure(&[&base[..], &["--ranks", "4", "--expert-bytes", "0"]].concat()).contains("1 byte")
    );
}

#[test]
fn a_budget_in_bytes_is_one_in_slots() {
    let files = Files::new();
    let load = files.write("load.csv", "600,560,120,120,20,10,10,10\n");
    let shape = ["--load", &load, "--ranks", "4", "--redundant", "4"];
    let current = files.path("p.json").display().to_string();
    let base = [&["plan"], &shape[..]].concat();
    stdout(&[&base[..], &["--out", &current]].concat());

    let base = [&base[..], &["--strategy", "eplb", "--current", &current]].concat();
    let placement = |budget: &[&str]| {
        let report = json(&[&base[..], budget, &["--json"]].concat());
        let moved = report["aggregate"]["slots_moved"].as_u64().unwrap();
        (moved, report["placement"].clone())
    };
    let (moved, in_slots) = placement(&["--budget-slots", "2"]);
    assert!((1..=2).contains(&moved), "{moved}");
    let bytes = ["--expert-bytes", "100", "--budget-bytes", "299"];
    assert_eq!(placement(&bytes), (moved, in_slots));

    for (flags, problem) in [
        (&["--budget-bytes", "299"][..], "needs `expert-bytes`"),
        (
            &["--budget-slots", "2", "--budget-bytes", "299"],
            "cannot be used with",
        ),
    ] {
        let error = failure(&[&base[..], flags].concat());
        assert!(error.contains(problem), "{error}");
    }
}

#[test]
fn loads_count_by_the_speed_of_their_rank() {
    let files = Files::new();
    let load = files.write("load.csv", "8,8,4,4,4,4,4,4\n");
    let plan = ["plan", "--load", &load, "--ranks", "3", "--slots", "12"];
    let plan = [
        &plan[..],
        &["--strategy", "adaptive", "--set", "speeds=[2,1,1]"],
    ]
    .concat();
    let report = json(&[&plan[..], &["--json"]].concat());
    // 20 on the fast rank, 10 on each of the others.
    let layer = &report["layers"][0];
    assert!(layer["balancedness"].as_f64().unwrap() > 0.999, "{layer}");
    assert_eq!(layer["balancedness_bound"], 1.0);
    assert_eq!(report["speeds"], json!([2.0, 1.0, 1.0]));
    assert!(
        stdout(
            &[
                &plan[..],
                &["--out", &files.path("p").display().to_string()]
            ]
            .concat()
        )
        .contains("relative speeds [2.0, 1.0, 1.0]")
    );
}

#[test]
fn settings_go_to_a_strategy_that_is_asked_for() {
    let files = Files::new();
    let load = files.write("load.csv", "1,2,3,4\n4,3,2,1\n");
    let compare = ["compare", "--load", &load, "--ranks", "2"];
    for flags in [
        &["--strategies", "linear", "--strategy", "eplb"][..],
        &["--strategy", "adaptve"],
    ] {
        let error = failure(&[&compare[..], flags].concat());
        assert!(error.contains("not among those asked for"), "{error}");
    }
    let whose = ["--strategies", "eplb,linear", "--set", "mode=global"];
    assert!(failure(&[&compare[..], &whose].concat()).contains("needs `--strategy`"));
    let named = ["--strategies", "eplb,linear", "--strategy", "eplb"];
    let named = [&compare[..], &named, &["--set", "strategy=linear"]].concat();
    assert!(failure(&named).contains("named by `--strategy`"));
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
    assert!(
        plan(&["--load", &load, "--groups", "5"])
            .contains("do not divide 12 logical experts; 1, 2, 3, 4, 6, 12 do")
    );
    let risky = ["--load", &load, "--strategy", "adaptive", "--set", "risk=2"];
    assert!(plan(&risky).contains("needs the load of 2 steps or more, got 0"));
    assert!(plan(&["--load", &load, "--set", "x=nan"]).contains("numbers must be finite"));
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

/// Beside the placement on stdout, the report is on stderr.
#[cfg(target_os = "linux")]
#[test]
fn a_report_that_nobody_reads_is_no_error() {
    let files = Files::new();
    let load = files.write("load.json", LOAD);
    let full = std::fs::File::options()
        .write(true)
        .open("/dev/full")
        .unwrap();
    let status = std::process::Command::new(assert_cmd::cargo::cargo_bin("moekit"))
        .args(["plan", "--load", &load])
        .stdout(std::process::Stdio::null())
        .stderr(full)
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
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
        let schema = json(&["strategies", "schema", name]);
        let description = schema["description"].as_str().unwrap();
        assert!(!description.contains("```"), "{description}");
        let example = stdout(&["strategies", "example", name]);
        assert!(
            example.contains(&format!("strategy = \"{name}\"")),
            "{example}"
        );
    }
    assert!(failure(&["strategies", "schema", "nothing"]).contains("linked are:"));

    let files = Files::new();
    let load = files.write("load.csv", "1,2,3,4\n4,3,2,1\n");
    for name in ["adaptive", "eplb", "linear"] {
        let example = stdout(&["strategies", "example", name]);
        let config = files.write("example.toml", &example);
        let plan = ["plan", "--load", &load, "--ranks", "2", "--json"];
        let report = json(&[&plan[..], &["--config", &config]].concat());
        assert_eq!(report["strategy"], name);
    }
}
