//! Live balance is what the simulation predicts for the same settings.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::{Arc, Mutex};
use std::thread;

use burn::tensor::{Device, Tensor};
use common::{Model, watched};
use moekit_eval::simulate::{SelectorSplit, Simulation};
use moekit_eval::workload::{Profile, Workload};
use moekit_fused_moe::{
    CustomRouting, ForwardOptions, FusedMoeConfig, FusedMoeError, GateTensors, Routed, Rows,
};
use moekit_live::{LayerParts, LiveConfig, Window};
use moekit_parallel::ThreadWorld;
use moekit_placement::{LoadTrace, PlacementRequest, Topology};
use moekit_routing::ReplicaSelector;
use moekit_strategy_eplb::Eplb;
use moekit_testkit::layer_spec;

const EXPERTS: usize = 32;
const TOP_K: usize = 4;
const RANKS: usize = 4;
const REDUNDANT: usize = 8;
const LAYERS: usize = 2;
const TOKENS: usize = 512;
const STEPS: usize = 200;
const INTERVAL: usize = 40;
/// The first plan is made after the first interval and carried out some steps later: what both are
/// compared by begins an interval later still.
const FIRST: usize = 2 * INTERVAL;

/// The choice of the experts, dictated batch by batch.
#[derive(Debug, Default)]
struct Scripted(Mutex<Vec<i64>>);

impl CustomRouting for Scripted {
    fn route(&self, _: Rows<'_>, _: &[f32], _: usize, _: usize) -> Result<Routed, FusedMoeError> {
        let ids = self.0.lock().unwrap().clone();
        let weights = vec![0.25; ids.len()];
        Ok(Routed::new(ids, weights))
    }
}

fn model(scripts: &[Arc<Scripted>]) -> Model {
    let mut parts = Vec::new();
    for (layer, script) in scripts.iter().enumerate() {
        let spec = layer_spec(layer, [EXPERTS, TOP_K, 4, 2]);
        let config = FusedMoeConfig::from_spec(&spec).with_custom_routing(script.clone());
        let gate = GateTensors::new(vec![0.0; EXPERTS * 4]);
        parts.push(LayerParts::new(spec, config, gate));
    }
    let experts = (0..LAYERS)
        .map(|_| common::experts(EXPERTS, 4, 2))
        .collect();
    Model::new(parts, experts, 4)
}

/// The experts of a rank's tokens: dealt like cards from the counts of the step.
fn ids(counts: &[f64], rank: usize) -> Vec<i64> {
    let all: Vec<i64> = (0_i64..)
        .zip(counts)
        .flat_map(|(id, &count)| std::iter::repeat_n(id, count as usize))
        .collect();
    let own = (rank..TOKENS).step_by(RANKS);
    own.flat_map(|token| (0..TOP_K).map(move |j| token + j * TOKENS))
        .map(|at| all[at])
        .collect()
}

/// Sum of the means over the sum of the maxima, from step `FIRST` on.
fn live(trace: &Arc<LoadTrace>) -> f64 {
    let world = ThreadWorld::new(RANKS);
    let threads: Vec<_> = (0..RANKS)
        .map(|_| {
            let (trace, member) = (trace.clone(), world.enter());
            thread::spawn(move || {
                let scripts: Vec<Arc<Scripted>> = (0..LAYERS).map(|_| Arc::default()).collect();
                let model = model(&scripts);
                let config = LiveConfig::new(Arc::new(Eplb::default()))
                    .with_redundant_experts(REDUNDANT)
                    .with_interval(INTERVAL as u64)
                    .with_window(Window::Ring(INTERVAL))
                    .with_synchronous(true);
                let mut live = model.start(member, RANKS, config).unwrap();
                let (mut means, mut maxima) = (0.0, 0.0);
                for (number, step) in trace.steps().iter().enumerate() {
                    let rank = live.rank().unwrap().index();
                    for (layer, counts) in step.layers().enumerate() {
                        *scripts[layer].0.lock().unwrap() = ids(counts, rank);
                        let rows = Tensor::ones([TOKENS / RANKS, 4], &Device::flex());
                        live.forward(layer, rows, ForwardOptions::new()).unwrap();
                    }
                    let report = live.end_step().unwrap();
                    if let Some(balance) = report.balance.filter(|_| number >= FIRST) {
                        for ranks in balance.tokens {
                            means += ranks.iter().sum::<u64>() as f64 / RANKS as f64;
                            maxima += *ranks.iter().max().unwrap() as f64;
                        }
                    }
                }
                means / maxima
            })
        })
        .collect();
    let results: Vec<f64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
    results.into_iter().find(|r| r.is_finite()).unwrap()
}

/// The profiles, and how many seeds of each.
const STREAMS: [(&str, u64); 4] = [
    ("r1-mt", 4),
    ("lognormal", 2),
    ("zipf:0.6", 2),
    ("uniform", 1),
];

#[test]
fn live_balance_is_within_two_points_of_the_simulation() {
    watched(|| {
        for (profile, seeds) in STREAMS {
            for seed in 0..seeds {
                let (live, predicted) = balances(profile.parse().unwrap(), seed);
                let difference = 100.0 * (live - predicted);
                println!(
                    "{profile}, seed {seed}: live {live:.4}, simulated {predicted:.4}, \
                     {difference:+.2} points"
                );
                assert!(difference.abs() <= 2.0, "{profile}, seed {seed}");
            }
        }
    });
}

/// The live balance, and what the simulation predicts.
fn balances(profile: Profile, seed: u64) -> (f64, f64) {
    let routed = (TOKENS * TOP_K) as u64;
    let workload = Workload::new(profile, EXPERTS, LAYERS, STEPS, routed).unwrap();
    let workload = workload.with_drift(0.01).unwrap().with_seed(seed);
    let trace = workload.generate().unwrap();
    let topology = Topology::new(RANKS).unwrap();
    let shape = PlacementRequest::new(LAYERS, EXPERTS, &topology)
        .unwrap()
        .with_redundant_experts(REDUNDANT)
        .unwrap();
    let simulation = Simulation::new(&trace, shape, INTERVAL, INTERVAL).unwrap();
    let mut split = SelectorSplit::new("round_robin", ReplicaSelector::default(), TOP_K, 1);
    let simulated = simulation.run(&Eplb::default(), &mut split).unwrap();
    let skipped = (FIRST - INTERVAL) * LAYERS * RANKS;
    let (mut means, mut maxima) = (0.0, 0.0);
    for ranks in simulated.rank_load[skipped..].chunks(RANKS) {
        means += ranks.iter().sum::<f64>() / RANKS as f64;
        maxima += ranks.iter().copied().fold(0.0, f64::max);
    }
    (live(&Arc::new(trace)), means / maxima)
}
