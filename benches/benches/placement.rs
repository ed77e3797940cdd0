//! How long strategies plan: `cargo bench --bench placement`.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use moekit::placement::{Topology, strategy_from_value};
use moekit_benches::{DEEPSEEK_V3, deepseek_v3_request, lognormal_load};

fn main() {
    moekit::builtins();
    divan::main();
}

/// All 58 layers of DeepSeek-V3, 256 experts in 288 slots on 32 ranks.
#[divan::bench(args = ["linear", "round_robin", "eplb", "adaptive"])]
fn deepseek_v3(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (layers, experts, _, ranks) = DEEPSEEK_V3;
    let load = lognormal_load(layers, experts, 1).unwrap();
    let topology = Topology::new(ranks).unwrap();
    let request = deepseek_v3_request(&topology, &load).unwrap();
    let strategy = strategy_from_value(serde_json::json!({ "strategy": name })).unwrap();
    bencher.bench(|| strategy.plan(&request).unwrap());
}
