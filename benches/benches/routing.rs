//! How long tables take to build and to look up: `cargo bench --bench routing`.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use divan::counter::ItemsCount;
use moekit::placement::{Topology, strategy_from_value};
use moekit::routing::{
    Rank, ReplicaSelector, RoutingTable, SelectContext, SelectReplica, StepLoad,
};
use moekit_benches::{DEEPSEEK_V3, deepseek_v3_request, lognormal_load, rng};
use rand::RngExt;

const TOKENS: usize = 4096;
const TOP_K: usize = 8;

fn main() {
    moekit::builtins();
    divan::main();
}

fn table() -> RoutingTable {
    let (layers, experts, _, ranks) = DEEPSEEK_V3;
    let load = lognormal_load(layers, experts, 1).unwrap();
    let topology = Topology::new(ranks).unwrap();
    let request = deepseek_v3_request(&topology, &load).unwrap();
    let strategy = strategy_from_value(serde_json::json!({ "strategy": "eplb" })).unwrap();
    let placement = strategy.plan(&request).unwrap().into_layers().remove(0);
    RoutingTable::new(placement, topology, 0, 0).unwrap()
}

fn topk_ids() -> Vec<i64> {
    let mut rng = rng(2);
    (0..TOKENS * TOP_K)
        .map(|_| rng.random_range(0..DEEPSEEK_V3.1 as i64))
        .collect()
}

/// Every table of one layer of DeepSeek-V3 on 32 ranks.
#[divan::bench]
fn build_table(bencher: divan::Bencher<'_, '_>) {
    let table = table();
    bencher.bench(|| {
        let placement = table.placement().clone();
        RoutingTable::new(placement, table.topology().clone(), 1, 1).unwrap()
    });
}

/// One lookup in the expert map of a rank.
#[divan::bench]
fn global_to_local(bencher: divan::Bencher<'_, '_>) {
    let (table, ids) = (table(), topk_ids());
    bencher.counter(ItemsCount::new(ids.len())).bench(|| {
        ids.iter()
            .filter(|&&id| table.map_global_to_local(Rank::new(3), id).is_some())
            .count()
    });
}

/// Logical to physical ids of 4096 tokens with top-8.
#[divan::bench(args = ReplicaSelector::NAMES)]
fn select_replicas(bencher: divan::Bencher<'_, '_>, name: &str) {
    let (table, ids) = (table(), topk_ids());
    let selector = ReplicaSelector::from_name(name).unwrap();
    // Every rank routes the same batch.
    let mut load = StepLoad::new(&table);
    load.record(&ids, TOP_K, TOKENS).unwrap();
    let counts = load.counts().repeat(table.num_ranks());
    let context = SelectContext::new(&table, Rank::new(3), TOP_K).with_counts(&counts);
    let mut physical = vec![0; ids.len()];
    bencher
        .counter(ItemsCount::new(ids.len()))
        .bench_local(|| selector.select(&context, &ids, &mut physical).unwrap());
}
