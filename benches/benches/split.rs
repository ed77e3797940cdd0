//! How long the per-step split of tokens over replicas takes, and how far from the optimum it ends:
//! `cargo bench --bench split`.
//!
//! 256 experts on 288 slots of 32 ranks, placed on the window before; steps of the R1-MT profile.
//! Every split starts from the one of the step before, as in a running layer.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use divan::AllocProfiler;
use divan::counter::ItemsCount;
use moekit::eval::workload::{Profile, Workload};
use moekit::placement::bound::optimal_split;
use moekit::placement::{LoadTrace, PlacementRequest, Topology, strategy_from_value};
use moekit::routing::{ReplicaShares, RoutingTable};

/// Shows that a split allocates nothing.
#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

const EXPERTS: usize = 256;
const REDUNDANT: usize = 32;
const RANKS: usize = 32;
const LAYERS: usize = 8;
/// Steps to plan on, then as many to split.
const STEPS: usize = 64;

/// Strategy, routed tokens per layer and step, tolerance of the split.
const CASES: [Case; 6] = [
    ("eplb", 32_768, 1e-2),
    ("eplb", 32_768, 1e-3),
    ("adaptive", 32_768, 1e-2),
    ("adaptive", 32_768, 1e-3),
    ("adaptive", 4_096, 1e-2),
    ("adaptive", 4_096, 1e-3),
];

type Case = (&'static str, u64, f64);

fn main() {
    moekit::builtins();
    CASES.into_iter().for_each(print_distance);
    divan::main();
}

/// A layer's table and the counts of its steps.
type Layer = (RoutingTable, Vec<Vec<u64>>);

fn layers(strategy: &str, tokens: u64) -> Vec<Layer> {
    let workload = Workload::new(Profile::R1Mt, EXPERTS, LAYERS, 2 * STEPS, tokens).unwrap();
    let trace = workload.generate().unwrap();
    let window = LoadTrace::new(trace.steps()[..STEPS].to_vec()).unwrap();
    let load = window.total();
    let topology = Topology::new(RANKS).unwrap();
    let request = PlacementRequest::new(LAYERS, EXPERTS, &topology)
        .and_then(|request| request.with_redundant_experts(REDUNDANT))
        .and_then(|request| request.with_load(&load))
        .and_then(|request| request.with_trace(&window))
        .unwrap();
    let strategy = strategy_from_value(serde_json::json!({ "strategy": strategy })).unwrap();
    let plan = strategy.plan(&request).unwrap();
    let layer = |(layer, placement)| {
        let table = RoutingTable::new(placement, topology.clone(), 0, 0).unwrap();
        let steps = trace.steps()[STEPS..].iter();
        let counts = steps.map(|step| {
            step.layer(layer)
                .unwrap()
                .iter()
                .map(|&n| n as u64)
                .collect()
        });
        (table, counts.collect())
    };
    plan.into_layers()
        .into_iter()
        .enumerate()
        .map(layer)
        .collect()
}

/// Prints the mean and the largest distance of the busiest rank from the certificate, of whole
/// tokens from the optimum over fractions of them.
fn print_distance((strategy, tokens, tolerance): Case) {
    let mut distances = Vec::new();
    for (table, steps) in layers(strategy, tokens) {
        let mut shares = ReplicaShares::new(&table)
            .with_tolerance(tolerance)
            .unwrap();
        for counts in steps {
            let split = shares.split(&counts).unwrap();
            let ranks = table.placement().rank_offsets().windows(2);
            let busiest = ranks
                .map(|w| split[w[0]..w[1]].iter().sum::<u64>())
                .max()
                .unwrap();
            let best = optimal_split(table.placement(), &counts).unwrap().level();
            distances.push(1.0 - best / busiest as f64);
        }
    }
    let mean = distances.iter().sum::<f64>() / distances.len() as f64;
    let worst = distances.iter().copied().fold(0.0, f64::max);
    println!(
        "{strategy}, {tokens} tokens, tolerance {tolerance}: {mean:.5} from the optimum, at most {worst:.5}"
    );
}

/// One layer of one step.
#[divan::bench(args = CASES)]
fn split(bencher: divan::Bencher<'_, '_>, (strategy, tokens, tolerance): Case) {
    let mut layers: Vec<(ReplicaShares, Vec<Vec<u64>>)> = layers(strategy, tokens)
        .into_iter()
        .map(|(table, steps)| {
            (
                ReplicaShares::new(&table)
                    .with_tolerance(tolerance)
                    .unwrap(),
                steps,
            )
        })
        .collect();
    let mut turn = 0;
    bencher.counter(ItemsCount::new(1usize)).bench_local(|| {
        let (shares, steps) = &mut layers[turn % LAYERS];
        let counts = &steps[turn / LAYERS % STEPS];
        turn += 1;
        divan::black_box(shares.split(counts).unwrap()[0])
    });
}
