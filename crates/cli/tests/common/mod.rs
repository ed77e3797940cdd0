//! What the tests of the command share.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use safetensors::SafeTensors;
use serde_json::Value;

pub(crate) fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

pub(crate) fn example(name: &str) -> PathBuf {
    repository().join("examples/checkpoints").join(name)
}

/// A checkpoint that a clone does not have; tests that use it pass without.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = repository().join("../shared/checkpoints").join(name);
    path.exists().then_some(path)
}

/// The command, run from the root of the repository.
pub(crate) fn moekit<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Command {
    let mut command = Command::cargo_bin("moekit").expect("the binary is built with the tests");
    command.current_dir(repository()).args(args);
    command
}

/// Stdout of a run that must succeed.
pub(crate) fn stdout<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let output = moekit(args).assert().success().get_output().stdout.clone();
    String::from_utf8(output).expect("stdout is UTF-8")
}

/// The one JSON document on stdout of a run that must succeed.
pub(crate) fn json<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> Value {
    serde_json::from_str(&stdout(args)).expect("stdout is one JSON document")
}

/// Stderr of a run that must fail without a panic, in one line of single spaces.
pub(crate) fn failure<S: AsRef<std::ffi::OsStr>>(args: &[S]) -> String {
    let assert = moekit(args).assert().failure();
    let output = assert.get_output();
    assert!(
        output.stdout.is_empty(),
        "nothing on stdout: {:?}",
        String::from_utf8_lossy(&output.stdout)
    );
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!text.contains("panicked"), "{text}");
    // miette wraps lines and draws a bar in front of them.
    text.replace(['│', '×', '╰', '─', '▶'], " ")
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

/// Tensors by name: shape and values.
pub(crate) type Tensors = BTreeMap<String, (Vec<usize>, Vec<f64>)>;

/// The float and integer tensors of a file, as f64.
pub(crate) fn tensors(path: &Path) -> Tensors {
    let bytes = std::fs::read(path).expect("the file exists");
    let file = SafeTensors::deserialize(&bytes).expect("it is a safetensors file");
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let values = match view.dtype() {
                safetensors::Dtype::F32 => view
                    .data()
                    .chunks_exact(4)
                    .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
                    .collect(),
                safetensors::Dtype::F64 => view
                    .data()
                    .chunks_exact(8)
                    .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                    .collect(),
                safetensors::Dtype::I64 => view
                    .data()
                    .chunks_exact(8)
                    .map(|b| i64::from_le_bytes(b.try_into().unwrap()) as f64)
                    .collect(),
                other => panic!("{name} is {other:?}"),
            };
            (name, (view.shape().to_vec(), values))
        })
        .collect()
}

/// `|a - b| / |b|`, Frobenius.
pub(crate) fn relative_error(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let difference: f64 = a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| b * b).sum();
    (difference / norm).sqrt()
}

/// Runs on a checkpoint's own reference inputs; returns output tensors and report.
fn run_on_reference(checkpoint: &Path, args: &[&str]) -> (Tensors, Value) {
    let directory = tempfile::tempdir().unwrap();
    let output = directory.path().join("out.safetensors");
    let input = checkpoint.join("reference.safetensors");
    let base = [
        "run",
        checkpoint.to_str().unwrap(),
        "--input",
        input.to_str().unwrap(),
        "--output",
        output.to_str().unwrap(),
        "--json",
    ];
    let report = json(&[&base[..], args].concat());
    (tensors(&output), report)
}

/// Ids as sets of rows, weights by id, outputs within a relative Frobenius error.
pub(crate) fn compare(checkpoint: &Path, args: &[&str], tolerance: f64) -> Value {
    let reference = tensors(&checkpoint.join("reference.safetensors"));
    let (got, report) = run_on_reference(checkpoint, args);
    let outputs: Vec<_> = reference
        .keys()
        .filter(|k| k.ends_with(".output"))
        .collect();
    assert!(!outputs.is_empty());
    for name in outputs {
        let layer = name.trim_end_matches(".output");
        let error = relative_error(&got[name].1, &reference[name].1);
        assert!(
            error <= tolerance,
            "{name} with {args:?}: relative error {error:e}"
        );

        let ids = format!("{layer}.topk_ids");
        let weights = format!("{layer}.topk_weights");
        let top_k = reference[&ids].0[1];
        assert_eq!(got[&ids].0, reference[&ids].0);
        let rows = |t: &Tensors| -> Vec<BTreeMap<u64, f64>> {
            let pairs = t[&ids]
                .1
                .iter()
                .map(|&id| id as u64)
                .zip(t[&weights].1.iter().copied());
            pairs
                .collect::<Vec<_>>()
                .chunks(top_k)
                .map(|row| row.iter().copied().collect())
                .collect()
        };
        for (got, expected) in rows(&got).iter().zip(rows(&reference)) {
            assert_eq!(
                got.keys().collect::<Vec<_>>(),
                expected.keys().collect::<Vec<_>>()
            );
            for (id, weight) in expected {
                assert!(
                    (got[&id] - weight).abs() <= tolerance,
                    "{name} with {args:?}"
                );
            }
        }
        for row in got[&weights].1.chunks(top_k) {
            assert!(row.is_sorted_by(|a, b| a >= b), "weights descend");
        }
    }
    report
}

/// A checkpoint of the repository.
pub(crate) fn fixture(name: &str) -> String {
    let path = repository().join("tests/fixtures/checkpoints").join(name);
    path.to_str().unwrap().to_owned()
}

/// The report without what takes a different time, or what only threads compare.
fn comparable(stdout: &[u8]) -> Value {
    let mut report: Value = serde_json::from_slice(stdout).expect("stdout is one JSON document");
    for layer in report["layers"].as_array_mut().unwrap() {
        let layer = layer.as_object_mut().unwrap();
        for key in [
            "seconds",
            "tokens_per_second",
            "max_difference_from_one_rank",
        ] {
            layer.remove(key);
        }
    }
    report
}

/// The same bits and the same report, from threads and from processes.
pub(crate) fn same_results(
    checkpoint: &str,
    size: usize,
    args: &[&str],
    processes_run: impl Fn(&[&str]) -> Assert,
) {
    let directory = tempfile::tempdir().unwrap();
    let file = |name: &str| directory.path().join(name);
    let (threads, processes) = (file("threads.safetensors"), file("processes.safetensors"));
    let with_output = |path: &PathBuf| -> Vec<String> {
        let output = ["--json", "--output", path.to_str().unwrap()];
        let all = [&[checkpoint], args, &output].concat();
        all.into_iter().map(str::to_owned).collect()
    };
    let size_text = size.to_string();
    let by_threads = with_output(&threads);
    let mut arguments = vec!["run", "--ranks", &size_text, "--threads", "1"];
    arguments.extend(by_threads.iter().map(String::as_str));
    let expected = moekit(&arguments).assert().success();

    let by_processes = with_output(&processes);
    let arguments: Vec<&str> = by_processes.iter().map(String::as_str).collect();
    let got = processes_run(&arguments).success();

    let context = format!("{checkpoint} on {size} ranks with {args:?}");
    let read = |path: &PathBuf| std::fs::read(path).unwrap();
    assert!(read(&threads) == read(&processes), "{context}: other bits");
    assert_eq!(
        comparable(&got.get_output().stdout),
        comparable(&expected.get_output().stdout),
        "{context}"
    );
}

/// The steps and the summary of `moekit live --json`.
pub(crate) fn live_report(stdout: &[u8]) -> (Vec<Value>, Value) {
    let text = String::from_utf8_lossy(stdout);
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    let mut lines: Vec<Value> = lines.collect();
    let summary = lines.pop().unwrap()["summary"].clone();
    (lines, summary)
}

/// The sizes of the group, one after the other.
pub(crate) fn group_sizes(steps: &[Value]) -> Vec<u64> {
    let mut ranks: Vec<u64> = steps.iter().map(|s| s["ranks"].as_u64().unwrap()).collect();
    ranks.dedup();
    ranks
}
