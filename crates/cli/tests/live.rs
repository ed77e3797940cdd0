//! `moekit live` on a small checkpoint.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use assert_cmd::prelude::*;
use common::{group_sizes, live_report};
use serde_json::Value;

fn command(tokens: &str) -> Command {
    on("qwen3_moe-bf16", tokens)
}

fn on(checkpoint: &str, tokens: &str) -> Command {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let mut command = Command::cargo_bin("moekit").unwrap();
    command.arg("live").arg(fixtures.join(checkpoint));
    command.args(["--tokens", tokens, "--threads", "1", "--json"]);
    command
}

fn live(arguments: &[&str]) -> Command {
    let mut command = command("16");
    command.args(arguments);
    command
}

/// What the command says that it does not do.
fn refused(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    // Lines are wrapped wherever they are too long.
    let words = text.split_whitespace().filter(|word| *word != "│");
    words.collect::<Vec<_>>().join(" ")
}

/// The steps and the summary.
fn lines(arguments: &[&str]) -> (Vec<Value>, Value) {
    told(&mut live(arguments))
}

fn told(command: &mut Command) -> (Vec<Value>, Value) {
    live_report(&command.unwrap().stdout)
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
    let regrouped = |step: &&Value| step["events"].to_string().contains("regrouped");
    let regrouped: Vec<_> = steps.iter().filter(regrouped).collect();
    // The members of the first group and of the newcomers are 0, 1 and 2.
    assert_eq!(regrouped.last().unwrap()["step"], 45, "the loss is shown");
    let loss = regrouped.last().unwrap()["events"].to_string();
    assert!(loss.contains(r#""members":[0,2]"#), "{loss}");
    let numbers: Vec<u64> = steps.iter().map(|s| s["step"].as_u64().unwrap()).collect();
    assert_eq!(
        numbers,
        (1..=80).collect::<Vec<_>>(),
        "each step once, in order"
    );
    let ranks: Vec<u64> = steps.iter().map(|s| s["ranks"].as_u64().unwrap()).collect();
    assert_eq!((ranks[0], ranks[79]), (1, 2), "{ranks:?}");
    assert!(ranks.contains(&3), "{ranks:?}");
}

/// Nothing follows the forward pass in which the loss is seen.
#[test]
fn a_model_with_one_layer_of_experts_loses_ranks() {
    let mut command = on("deepseek_v3-bf16", "16");
    command.args(["--ranks", "5", "--strategy", "eplb", "--steps", "20"]);
    command.args(["--lose", "10:1,15:0,15:1", "--synchronous", "--check", "1"]);
    let (steps, summary) = told(&mut command);
    assert_eq!(group_sizes(&steps), [5, 4, 2]);
    assert_eq!(steps.len(), 20);
    assert_eq!(summary["wrong_outputs"], 0, "{summary}");
}

/// Rank 0 is lost when the group is to shrink: the survivors have other numbers than those that were
/// to leave.
#[test]
fn a_group_that_shrinks_and_loses_its_first_rank_has_the_wanted_size() {
    for (resize, wanted) in [("5:1", 1), ("5:2,20:3", 3)] {
        let (steps, _) = lines(&[
            "--ranks",
            "3",
            "--strategy",
            "eplb",
            "--steps",
            "120",
            "--rebalance",
            "off",
            "--resize",
            resize,
            "--lose",
            "5:0",
            "--synchronous",
        ]);
        assert_eq!(steps.len(), 120);
        assert_eq!(steps[119]["ranks"], wanted, "{resize}");
    }
}

/// The rank that holds everything is lost before the newcomers have got anything.
#[test]
fn two_synchronous_runs_do_the_same_in_the_same_steps() {
    let run = || {
        let (steps, _) = lines(&[
            "--ranks",
            "1",
            "--strategy",
            "eplb",
            "--steps",
            "30",
            "--resize",
            "8:3",
            "--lose",
            "10:0",
            "--synchronous",
            "--check",
            "1",
        ]);
        let told = |step: &Value| {
            let unserved = step["unserved"].as_u64().unwrap_or(0);
            let ranks = step["ranks"].as_u64().unwrap();
            (ranks, unserved, step["events"].clone())
        };
        steps.iter().map(told).collect::<Vec<_>>()
    };
    let steps = run();
    assert_eq!(steps, run());
    let mut ranks: Vec<u64> = steps.iter().map(|step| step.0).collect();
    assert_eq!(ranks.len(), 30, "none is repeated from the beginning on");
    assert_eq!(ranks[7..10], [1, 3, 2]);
    ranks.dedup();
    assert_eq!(ranks, [1, 3, 2]);
    // Two layers of 16 tokens.
    assert_eq!((steps[9].1, steps[29].1), (32, 0), "{steps:?}");
}

#[test]
fn a_size_that_is_not_reached_is_told() {
    let arguments = ["--ranks", "1", "--steps", "9", "--resize", "9:2"];
    let text = refused(&mut live(&arguments));
    assert!(text.contains("--resize 9:2"), "{text}");
}

#[test]
fn strategies_get_the_expert_groups_of_the_model() {
    let mut command = on("deepseek_v3-bf16", "16");
    command.args(["--ranks", "4", "--nodes", "2", "--strategy", "eplb"]);
    command.args(["--set", "mode=hierarchical", "--steps", "20"]);
    command.args(["--rebalance", "interval=6,window=6", "--synchronous"]);
    let (_, summary) = told(&mut command);
    let count = |name: &str| summary[name].as_u64().unwrap();
    assert_eq!(count("failures"), 0, "{summary}");
    assert!(count("plans_adopted") + count("plans_skipped") > 0);
}

#[test]
fn an_error_that_repeats_ends_the_run() {
    let text = refused(live(&["--ranks", "2"]).env("MOEKIT_ISA", "foo"));
    assert!(text.contains("foo"), "{text}");
}

/// Had it gone on to the end, it would have failed there.
#[test]
fn nobody_to_read_the_steps_ends_the_run() {
    let arguments = ["--ranks", "1", "--steps", "20000", "--resize", "20000:2"];
    for comm in ["threads", "tcp"] {
        let mut command = live(&arguments);
        command.args(["--comm", comm]).stdout(Stdio::piped());
        let mut run = command.spawn().unwrap();
        let mut line = String::new();
        let mut steps = BufReader::new(run.stdout.take().unwrap());
        steps.read_line(&mut line).unwrap();
        assert!(line.contains("\"step\":1,"), "{line}");
        drop(steps);
        assert!(run.wait().unwrap().success(), "{comm}");
    }
}

#[test]
fn a_loss_that_does_not_happen_is_told() {
    // The group has one rank until the newcomers are in, which they cannot be at once.
    let arguments = [
        "--ranks", "1", "--steps", "9", "--resize", "2:2", "--lose", "2:1",
    ];
    let text = refused(&mut live(&arguments));
    assert!(text.contains("--lose 2:1"), "{text}");
}

#[test]
fn the_help_tells_the_ranks_of_a_live_run() {
    let output = live(&["--help"]).unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(
        text.contains("Ranks of the EP group [default: 4]"),
        "{text}"
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let most = u64::MAX.to_string();
    for (arguments, message) in [
        (&["--check", "0"][..], "`--check 0`"),
        (&["--lose", "2:9"], "ranks 0..4"),
        (&["--resize", "2:99999999999"], "1 to 1024 ranks"),
        (&["--ranks", "5000"], "`--ranks 5000`: 1 to 1024"),
        (&["--redundant", &most], "slots"),
        (&["--rebalance", "below=2"], "must be in (0, 1]"),
        (
            &["--rebalance", "cusum=nan:1"],
            "slack of the change detector",
        ),
        (&["--rebalance", "pays=1:1e-9:1e400"], "finite"),
        (&["--rebalance", "sometimes"], "interval=STEPS"),
        (
            &["--rebalance", "window=8,decay=0.5"],
            "one of `window` and `decay`",
        ),
        (&["--resize", "5"], "STEP:NUMBER"),
        (&["--staging-bytes", "10"], "staging budget of 10 bytes"),
        (&["--profile", "flat"], "flat"),
        (&["--strategy", "wishful"], "wishful"),
    ] {
        let text = refused(&mut live(arguments));
        assert!(text.contains(message), "{text}");
    }
}

#[test]
fn more_tokens_than_there_is_room_for_are_refused() {
    for tokens in ["18446744073709551615", "1000000000000", "0"] {
        let text = refused(&mut command(tokens));
        assert!(text.contains(&format!("--tokens {tokens}")), "{text}");
    }
}
