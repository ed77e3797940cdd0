//! `moekit run` with ranks as processes: the results of ranks as threads. `moekit live` with
//! processes that come and go: the results of one rank.

#![cfg(feature = "mpi")]
#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use std::time::Duration;

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use common::{fixture, group_sizes, live_report, repository};
use serde_json::Value;

/// Starts programs, each with its number of processes and the arguments of `moekit run`.
fn mpirun(programs: &[(usize, &[&str])]) -> Assert {
    start("run", programs)
}

/// Starts programs, each with its number of processes and its arguments.
fn start(subcommand: &str, programs: &[(usize, &[&str])]) -> Assert {
    let mut command = Command::new("mpirun");
    command
        .current_dir(repository())
        // As root and with more processes than cores, if need be: Open MPI asks before.
        .env("OMPI_ALLOW_RUN_AS_ROOT", "1")
        .env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
        .env("OMPI_MCA_rmaps_base_oversubscribe", "1")
        // Against a hang: far beyond what any job needs.
        .timeout(Duration::from_secs(120));
    for (i, (size, args)) in programs.iter().enumerate() {
        if i > 0 {
            command.arg(":");
        }
        let size = size.to_string();
        command
            .args(["-n", &size, env!("CARGO_BIN_EXE_moekit"), subcommand])
            .args(*args)
            .args(["--comm", "mpi", "--threads", "1"]);
    }
    command.assert()
}

/// What a failed job says; miette's frame and line breaks are gone.
fn failure(programs: &[(usize, &[&str])]) -> String {
    message(&mpirun(programs).failure())
}

fn message(assert: &Assert) -> String {
    let output = assert.get_output();
    assert!(output.status.code().is_some(), "it ends by itself");
    assert!(output.stdout.is_empty(), "nothing on stdout");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!text.contains("panicked"), "{text}");
    text.replace(['│', '×', '╰', '─', '▶'], " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

fn same_results(checkpoint: &str, size: usize, args: &[&str]) {
    common::same_results(checkpoint, size, args, |args| mpirun(&[(size, args)]));
}

#[test]
fn processes_compute_what_threads_compute() {
    let checkpoints = [
        "qwen3_moe-bf16",
        "deepseek_v3-fp8-block128x128",
        "gpt_oss-mxfp4",
        "qwen3_moe-ct-w4a16-g32",
    ];
    for checkpoint in checkpoints.map(fixture) {
        for size in [2, 3, 4] {
            let args = ["--strategy", "eplb", "--redundant", "5", "--tokens", "41"];
            same_results(&checkpoint, size, &args);
        }
    }
}

#[test]
fn ranks_without_tokens_take_part() {
    for tokens in ["0", "1", "3"] {
        let args = ["--tokens", tokens, "--strategy", "round_robin"];
        same_results(&fixture("qwen3_moe-fp8-block64x32"), 4, &args);
    }
    let args = ["--tokens", "2", "--dtype", "bf16", "--ranks", "4"];
    same_results(&fixture("deepseek_v3-bf16"), 4, &args[..4]);
}

#[test]
fn one_process_is_a_group() {
    same_results(&fixture("mixtral-bf16"), 1, &[]);
}

#[test]
fn the_number_of_processes_is_the_number_of_ranks() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let text = failure(&[(3, &[&checkpoint, "--ranks", "2"])]);
    assert!(
        text.contains("`--ranks 2`, but MPI has started 3 processes"),
        "{text}"
    );
    assert_eq!(text.matches("`--ranks 2`").count(), 1, "once: {text}");
}

/// The others are far into their work, and would wait for it.
#[test]
fn a_process_that_fails_ends_the_job_with_its_message() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.safetensors");
    let good = [&*checkpoint, "--output", output.to_str().unwrap()];
    let text = failure(&[(2, &good), (1, &["/nowhere"]), (1, &good)]);
    assert!(text.contains("rank 2 of 4 failed: /nowhere"), "{text}");
    assert_eq!(text.matches(" of 4 failed").count(), 1, "once: {text}");
    assert!(!output.exists(), "nothing half done");

    // It opens its checkpoint, and finds that an expert is cut short when it reads it.
    let broken = directory.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(&checkpoint).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), broken.join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(broken.join("config.json")).unwrap();
    let wider = config.replace(
        "\"moe_intermediate_size\": ",
        "\"moe_intermediate_size\": 1",
    );
    assert_ne!(config, wider);
    std::fs::write(broken.join("config.json"), wider).unwrap();
    let text = failure(&[(1, &good), (1, &[broken.to_str().unwrap()]), (1, &good)]);
    assert!(text.contains("rank 1 of 3 failed: "), "{text}");
    assert_eq!(text.matches(" of 3 failed").count(), 1, "once: {text}");
    assert!(!output.exists(), "nothing half done");
}

#[test]
fn processes_must_make_the_same_plan() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let other = [&*checkpoint, "--strategy", "round_robin"];
    let text = failure(&[(1, &[&checkpoint]), (1, &other)]);
    assert!(
        text.contains("ranks 0 and 1 have made different plans"),
        "{text}"
    );
}

/// The steps and the summary of `moekit live` with that many processes.
fn live(size: usize, args: &[&str]) -> (Vec<Value>, Value) {
    let checkpoint = fixture("qwen3_moe-bf16");
    let common = ["--tokens", "16", "--strategy", "eplb", "--drift", "0.1"];
    let settings = ["--rebalance", "interval=6,window=6", "--synchronous"];
    let checks = ["--invariant", "--check", "1"];
    let args = [&[&*checkpoint], &common[..], &settings, &checks, args].concat();
    let assert = start("live", &[(size, &args)]).success();
    live_report(&assert.get_output().stdout)
}

#[test]
fn a_live_group_takes_spares_in_and_gives_them_back() {
    let (steps, summary) = live(
        4,
        &[
            "--ranks",
            "1",
            "--steps",
            "120",
            "--resize",
            "5:4,50:3,90:1",
        ],
    );
    assert_eq!(group_sizes(&steps), [1, 4, 3, 1]);
    assert_eq!(steps.len(), 120);
    assert_eq!(
        (&summary["wrong_outputs"], &summary["failures"]),
        (&0.into(), &0.into())
    );
    // Reports of a rank that has left may come too late to be counted.
    assert!(summary["compared_outputs"].as_u64().unwrap() > 120 * 16);
    assert!(summary["moved_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn a_live_group_goes_on_without_a_process_that_is_lost_to_it() {
    let (steps, summary) = live(3, &["--steps", "60", "--lose", "20:1", "--resize", "40:3"]);
    assert_eq!(group_sizes(&steps), [3, 2, 3], "it comes again as a spare");
    assert_eq!(summary["wrong_outputs"], 0);
    assert!(
        summary["unserved_tokens"].as_u64().unwrap() > 0,
        "{summary}"
    );
}

#[test]
fn a_live_group_has_no_more_ranks_than_processes() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let text = message(&start("live", &[(2, &[&checkpoint, "--resize", "9:3"])]).failure());
    assert!(
        text.contains("`--resize` wants 3 ranks, but MPI has started 2 processes"),
        "{text}"
    );
}

#[test]
fn a_live_process_that_fails_ends_the_job_with_its_message() {
    let checkpoint = fixture("qwen3_moe-bf16");
    let good = [&*checkpoint, "--steps", "1000000", "--ranks", "3"];
    let text = message(&start("live", &[(2, &good), (1, &["/nowhere"])]).failure());
    assert!(text.contains("rank 2 of 3 failed: /nowhere"), "{text}");
}
