//! `moekit live` on a small checkpoint.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::Path;
use std::process::Command;

use assert_cmd::prelude::*;
use serde_json::Value;

fn live(arguments: &[&str]) -> Command {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let mut command = Command::cargo_bin("moekit").unwrap();
    command.arg("live").arg(fixtures.join("qwen3_moe-bf16"));
    command.args(["--tokens", "16", "--threads", "1", "--json"]);
    command.args(arguments);
    command
}

/// The steps and the summary.
fn lines(arguments: &[&str]) -> (Vec<Value>, Value) {
    let output = live(arguments).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    (lines, summary)
}

#[test]
fn experts_move_and_no_output_is_wrong() {
    let (steps, summary) = lines(&[
        "--ranks",
        "3",
        "--redundant",
        "1",
        "--strategy",
        "eplb",
        "--steps",
        "30",
        "--drift",
        "0.1",
        "--rebalance",
        "interval=6,window=6",
        "--synchronous",
        "--invariant",
        "--check",
        "1",
    ]);
    assert_eq!(steps.len(), 30);
    assert_eq!(summary["wrong_outputs"], 0);
    assert_eq!(summary["compared_outputs"], 30 * 2 * 16);
    assert!(summary["commits"].as_u64().unwrap() >= 2, "{summary}");
    assert!(summary["moved_bytes"].as_u64().unwrap() > 0);
    for step in steps {
        let tokens = step["tokens"].as_array().unwrap();
        let routed: u64 = tokens.iter().map(|n| n.as_u64().unwrap()).sum();
        assert_eq!(routed, 2 * 16 * 4, "every routed token is counted once");
    }
}

#[test]
fn the_group_grows_and_loses_a_rank() {
    let (steps, summary) = lines(&[
        "--ranks",
        "1",
        "--strategy",
        "eplb",
        "--steps",
        "80",
        "--rebalance",
        "off",
        "--resize",
        "5:3",
        "--lose",
        "45:1",
        "--synchronous",
        "--check",
        "1",
    ]);
    assert_eq!(summary["wrong_outputs"], 0, "{summary}");
    let ranks: Vec<u64> = steps.iter().map(|s| s["ranks"].as_u64().unwrap()).collect();
    assert_eq!((ranks[0], ranks[79]), (1, 2), "{ranks:?}");
    assert!(ranks.contains(&3), "{ranks:?}");
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (arguments, message) in [
        (&["--rebalance", "sometimes"][..], "interval=STEPS"),
        (&["--resize", "5"][..], "STEP:NUMBER"),
        (&["--staging-bytes", "10"][..], "staging budget of 10 bytes"),
        (&["--profile", "flat"][..], "flat"),
        (&["--strategy", "wishful"][..], "wishful"),
    ] {
        let output = live(arguments).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success());
        // Lines are wrapped wherever they are too long.
        let text = text
            .split_whitespace()
            .filter(|word| *word != "│")
            .collect::<Vec<_>>()
            .join(" ");
        assert!(text.contains(message), "{text}");
    }
}
