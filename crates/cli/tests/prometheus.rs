//! `moekit live --prometheus` serves what it measures.
#![cfg(feature = "prometheus")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use assert_cmd::prelude::*;

/// A run that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn scrape(address: SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let request = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

#[test]
fn the_metrics_of_a_run_can_be_scraped() {
    // A port that is free just now.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let run = Command::cargo_bin("moekit")
        .unwrap()
        .arg("live")
        .arg(fixtures.join("qwen3_moe-bf16"))
        .args(["--tokens", "16", "--threads", "1", "--json"])
        .args(["--ranks", "2", "--strategy", "eplb", "--redundant", "2"])
        .args(["--steps", "100000", "--prometheus", &address.to_string()])
        .stdout(Stdio::piped())
        .spawn();
    let mut run = Running(run.unwrap());
    let mut lines = BufReader::new(run.0.stdout.take().unwrap()).lines();
    for _ in 0..3 {
        lines.next().unwrap().unwrap();
    }
    let answer = scrape(address);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    for metric in [
        "moekit_steps_total{rank=\"1\"} ",
        "moekit_table_generation{rank=\"0\",layer=\"1\"} 0",
        "moekit_balancedness{layer=\"all\"} ",
        "moekit_tokens_total{layer=\"0\",rank=\"1\"} ",
        "moekit_rebalance_state{rank=\"0\"} ",
        "moekit_between_steps_seconds_count{rank=\"0\"} ",
    ] {
        let sample = |line: &str| line.starts_with(metric);
        assert!(answer.lines().any(sample), "{metric}: {answer}");
    }
}
