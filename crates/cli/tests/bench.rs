//! `moekit bench`: that it finishes and what it reports, never how fast.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod common;

use common::{failure, json, stdout};
use serde_json::Value;

/// As short as it gets.
const QUICK: [&str; 6] = ["bench", "--time", "0.001", "--threads", "2", "--tokens=1,5"];

const FORMATS: [&str; 13] = [
    "f32",
    "bf16",
    "f16",
    "fp8-block",
    "fp8-channel",
    "fp8-tensor",
    "int8",
    "int8-dynamic",
    "int4",
    "int4-asym",
    "mxfp4",
    "nvfp4",
    "mxfp8",
];

fn quick(args: &[&'static str]) -> Vec<&'static str> {
    [&QUICK, args].concat()
}

fn number(case: &Value, key: &str) -> f64 {
    case[key]
        .as_f64()
        .unwrap_or_else(|| panic!("{key} in {case}"))
}

#[test]
fn every_format_reports_every_case() {
    let shape = ["--shape", "64,64,8,2"];
    for act in ["f32", "bf16"] {
        let args = [&shape[..], &["--dtype", "all", "--act", act, "--json"]].concat();
        let report = json(&quick(&args));
        assert_eq!(report["threads"], 2);
        for limit in ["read_gbs", "f32_gflops", "bf16_gflops", "int8_gops"] {
            assert!(number(&report["limits"], limit) > 0.0);
        }
        let cases = report["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 2 * FORMATS.len());
        for (i, case) in cases.iter().enumerate() {
            assert_eq!(case["dtype"], FORMATS[i / 2]);
            assert_eq!(case["shape"], "64,64,8,2");
            assert_eq!(case["act"], act);
            let tokens = [1.0, 5.0][i % 2];
            assert_eq!(number(case, "tokens"), tokens);
            let ms = number(case, "median_ms");
            assert!(ms > 0.0 && number(case, "fraction_of_limit") > 0.0);
            let per_second = number(case, "tokens_per_s") * ms / 1e3;
            assert!((per_second - tokens).abs() < 1e-9 * tokens, "{case}");
            // The weights of all experts fit into the caches of any machine that tells of them.
            let limits = ["bandwidth", "cache", "compute", "latency"];
            assert!(limits.contains(&case["limit"].as_str().unwrap()));
        }
        // Of one token, two experts of 3 * 64 * 64 bf16 weights.
        assert_eq!(number(&cases[2], "weight_bytes"), 2.0 * 2.0 * 12288.0);
        // A nibble each, and a scale per 32; in memory each of three matrices fills its last cache line.
        let bytes = number(&cases[20], "weight_bytes") / 2.0;
        let least = 6144.0 + 384.0;
        assert!((least..least + 3.0 * 64.0).contains(&bytes), "{bytes}");
    }
}

#[test]
fn the_table_has_a_line_per_case() {
    let args = quick(&["--shape", "32,16,4,2", "--dtype", "bf16,fp8"]);
    let table = stdout(&args);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 2 + 4, "{table}");
    assert!(lines[0].starts_with("2 threads, "), "{table}");
    assert!(
        lines[5].starts_with("32,16,4,2        fp8-block    bf16      5"),
        "{table}"
    );
}

#[test]
fn a_forced_instruction_set_is_reported_and_a_wrong_one_refused() {
    let args = quick(&["--shape", "32,16,4,2", "--json"]);
    let run = |isa: &str| {
        let mut command = common::moekit(&args);
        command.env("MOEKIT_ISA", isa);
        command.output().unwrap()
    };
    let report: Value = serde_json::from_slice(&run("portable").stdout).unwrap();
    assert_eq!(report["isa"], "portable");
    assert!(run("").status.success(), "an empty variable names none");
    let refused = run("sse9");
    assert!(!refused.status.success() && refused.stdout.is_empty());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sse9"));
}

#[test]
fn what_is_not_known_is_refused_with_what_is() {
    for (args, messages) in [
        (
            ["--shape", "qwen4"],
            [
                "`qwen4` is no shape",
                "gpt-oss-20b, mixtral-8x7b, deepseek-v3-ep32",
            ],
        ),
        (["--shape", "8,8,2,3"], ["`8,8,2,3` is impossible", "top-k"]),
        (
            ["--dtype", "bf16,fp6"],
            ["`fp6` is no format", "f32, bf16, f16, fp8-block"],
        ),
        (["--tokens", "0"], ["`0` is no number of tokens", "from 1"]),
        (["--profile", "flat"], ["flat", "r1-mt"]),
        (["--time", "-1"], ["`-1` is no positive number", "seconds"]),
    ] {
        let flag = args.join("=");
        let error = failure(&["bench", &flag]);
        for message in messages {
            assert!(error.contains(message), "{flag}: {error}");
        }
    }
}

#[cfg(target_os = "linux")]
#[test]
fn what_does_not_fit_into_memory_is_refused_with_the_number() {
    let error = failure(&["bench", "--shape", "65536,65536,4096,1", "--dtype", "f32"]);
    assert!(
        error.contains("in f32 takes") && error.contains("GB of memory"),
        "{error}"
    );
}

#[test]
fn another_program_can_drive_it() {
    let shape = ["--shape", "32,16,4,2", "--driven"];
    // What drives it decides how long.
    assert!(failure(&quick(&shape)).contains("--time"));
    let args = [&["bench", "--threads", "2", "--tokens=1,5"], &shape[..]].concat();
    let mut command = common::moekit(&args);
    let output = command.write_stdin("batches\ngate 0\nread 4096\nlayers 8 0\npeak\n");
    let output = String::from_utf8(output.output().unwrap().stdout).unwrap();
    let answers: Vec<Value> = output
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let batches = answers[0].as_array().unwrap();
    assert_eq!(batches.len(), 16, "eight of each");
    assert_eq!(batches[15]["tokens"], 5);
    assert_eq!(batches[15]["local_ids"].as_array().unwrap().len(), 10);
    // A panel of 16 output features has room for 32.
    assert_eq!(
        number(&batches[0], "weight_bytes"),
        2.0 * 2.0 * (2.0 + 2.0 + 1.0) * 512.0
    );
    assert_eq!(number(&batches[0], "operations"), 2.0 * 2.0 * 3.0 * 512.0);
    for answer in &answers[1..3] {
        assert!(number(answer, "ms") > 0.0);
    }
    let times = answers[3]["ms"].as_array().unwrap();
    assert!(times.len() == 2 && times.iter().all(|ms| ms.as_f64().unwrap() > 0.0));
    assert!(number(&answers[4], "gflops") > 0.0);

    let mut command = common::moekit(&args);
    let output = command.write_stdin("layers 0 16\n").output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        !output.status.success() && error.contains("`layers 0 16`"),
        "{error}"
    );
}
