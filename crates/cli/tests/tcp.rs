//! `moekit run` with ranks as processes that it starts: the results of ranks as threads. `moekit
//! live` with processes that come, go and are killed: the results of one rank.
#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::time::Duration;

use assert_cmd::assert::Assert;
use common::{fixture, group_sizes, live_report, moekit, same_results};
use serde_json::Value;

/// Against a hang: far beyond what any run needs.
const PATIENCE: Duration = Duration::from_secs(120);

fn start(subcommand: &str, args: &[&str]) -> Assert {
    let common = ["--comm", "tcp", "--threads", "1"];
    moekit(&[&[subcommand], args, &common].concat())
        .timeout(PATIENCE)
        .assert()
}

/// What a run says that fails; the frame and the line breaks are gone.
fn failure(subcommand: &str, args: &[&str]) -> String {
    let assert = start(subcommand, args).failure().code(1);
    let text = String::from_utf8_lossy(&assert.get_output().stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    let text = text.replace(['│', '×', '╰', '─', '▶'], " ");
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn processes_compute_what_threads_compute() {
    for checkpoint in ["qwen3_moe-bf16", "gpt_oss-mxfp4"].map(fixture) {
        for size in [1, 3] {
            let args = ["--strategy", "eplb", "--redundant", "5", "--tokens", "41"];
            let size_text = size.to_string();
            same_results(&checkpoint, size, &args, |args| {
                start("run", &[args, &["--ranks", &size_text]].concat())
            });
        }
    }
}

#[test]
fn what_no_process_could_read_is_refused_once() {
    for subcommand in ["run", "live"] {
        let text = failure(subcommand, &["/nowhere", "--ranks", "3"]);
        assert_eq!(text.matches("/nowhere is not").count(), 1, "{text}");
    }
    let checkpoint = fixture("qwen3_moe-bf16");
    for (option, value) in [
        ("--input", "/nowhere"),
        ("--load", "/nowhere.npy"),
        ("--selector", "/nowhere"),
        ("--layers", "/nowhere"),
    ] {
        let text = failure("run", &[&checkpoint, "--ranks", "3", option, value]);
        assert_eq!(text.matches("Error:").count(), 1, "{text}");
        assert!(!text.contains("of 3 failed"), "{text}");
    }
}

/// The steps and the summary of `moekit live`.
fn live(args: &[&str]) -> (Vec<Value>, Value) {
    let checkpoint = fixture("qwen3_moe-bf16");
    let common = ["--tokens", "16", "--strategy", "eplb", "--drift", "0.1"];
    let settings = ["--rebalance", "interval=6,window=6", "--synchronous"];
    let checks = ["--invariant", "--check", "1", "--json"];
    let args = [&[&*checkpoint], &common[..], &settings, &checks, args].concat();
    let assert = start("live", &args).success();
    live_report(&assert.get_output().stdout)
}

#[test]
fn a_live_group_takes_spares_in_and_gives_them_back() {
    let (steps, summary) = live(&[
        "--ranks",
        "1",
        "--steps",
        "120",
        "--resize",
        "5:4,50:3,90:1",
    ]);
    assert_eq!(group_sizes(&steps), [1, 4, 3, 1]);
    assert_eq!(steps.len(), 120);
    let nothing = (&summary["wrong_outputs"], &summary["failures"]);
    assert_eq!(nothing, (&0.into(), &0.into()));
    assert!(summary["moved_bytes"].as_u64().unwrap() > 0);
}

/// Rank 0 leads the group; it is killed, too, and one more when the group has grown again.
#[test]
fn a_live_group_goes_on_without_processes_that_are_killed() {
    let (steps, summary) = live(&[
        "--ranks",
        "4",
        "--steps",
        "90",
        "--lose",
        "30:1,40:0,62:1",
        "--resize",
        "10:5,15:4,60:3",
    ]);
    // The one that left comes back for the step that wants three.
    assert_eq!(group_sizes(&steps), [4, 5, 4, 3, 2, 3, 2]);
    assert_eq!(steps.len(), 90);
    assert_eq!(summary["wrong_outputs"], 0);
    assert!(
        summary["unserved_tokens"].as_u64().unwrap() > 0,
        "{summary}"
    );
}

#[test]
fn a_run_of_which_all_processes_are_killed_has_failed() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let args = [
        &*checkpoint,
        "--tokens",
        "8",
        "--ranks",
        "2",
        "--steps",
        "9",
    ];
    let text = failure("live", &[&args[..], &["--lose", "5:0,7:0"]].concat());
    // The last rank of a group is not lost: nobody could tell.
    assert!(text.contains("--lose 7:0"), "{text}");
}
