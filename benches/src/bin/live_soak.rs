//! Experts move all the time, ranks come, leave and are lost, and every output is compared with
//! that of one rank, bit by bit:
//! `cargo run --release -p moekit-benches --bin live_soak -- [SECONDS] [SEED]` (600 and 0).
//!
//! Prints what happened as JSON; fails if an output was wrong, a member failed, nothing moved or no
//! step came to its end for a minute.

#![allow(
    clippy::unwrap_used,
    reason = "a soak that cannot go on has found something"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use moekit::burn::tensor::{Device, Tensor, TensorData};
use moekit::fused_moe::{ForwardOptions, FusedMoe, FusedMoeConfig, GateTensors, Reduction};
use moekit::kernels::CpuKernel;
use moekit::live::{Event, ExpertSource, LayerParts, LiveConfig, LiveError, LiveRank, SourceError};
use moekit::parallel::{ThreadMember, ThreadWorld};
use moekit::placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, typetag,
};
use moekit::quant::{ExpertMlp, ExpertWeights};
use moekit::routing::LogicalExpert;
use moekit_testkit::{expert, layer_spec};
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

const LAYERS: usize = 3;
const EXPERTS: usize = 16;
const TOP_K: usize = 4;
const HIDDEN: usize = 64;
const WIDTH: usize = 32;
const RANKS: usize = 4;
/// Steps from one change of the group to the next.
const CHANGE: u64 = 400;
/// How long nothing may happen; far beyond what a step takes.
const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);

/// Another permutation for every placement in force.
#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Shuffle {
    seed: u64,
}

#[typetag::serde(name = "soak-shuffle")]
impl PlacementStrategy for Shuffle {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let experts = request.num_logical_experts();
        let layer = |l: usize| {
            let now = request
                .current()
                .map(|c| c.layers()[l].physical_to_logical());
            let now = now.unwrap_or_default().iter();
            let seed = now.fold(self.seed + l as u64, |hash, e| {
                (hash ^ e.index() as u64).wrapping_mul(0x0100_0000_01b3)
            });
            let mut slots: Vec<usize> = (0..request.num_slots()).map(|s| s % experts).collect();
            slots.shuffle(&mut ChaCha8Rng::seed_from_u64(seed));
            Placement::new(experts, slots, request.rank_offsets())
        };
        ModelPlacement::new(
            (0..request.num_layers())
                .map(layer)
                .collect::<Result<_, _>>()?,
        )
    }
}

#[derive(Debug)]
struct Memory(Vec<Vec<Arc<ExpertMlp>>>);

impl ExpertSource for Memory {
    fn read(&self, layer: usize, expert: LogicalExpert) -> Result<Arc<ExpertMlp>, SourceError> {
        Ok(self.0[layer][expert.index()].clone())
    }
}

#[derive(Debug)]
struct Soak {
    parts: Vec<LayerParts>,
    experts: Arc<Memory>,
    reference: Vec<FusedMoe>,
    config: LiveConfig,
    seed: u64,
    stop: AtomicBool,
    counts: Counts,
}

/// What happened, over all ranks.
#[derive(Debug, Default)]
struct Counts {
    outputs: AtomicU64,
    wrong: AtomicU64,
    unserved: AtomicU64,
    commits: AtomicU64,
    bytes: AtomicU64,
    regroups: AtomicU64,
    lost: AtomicU64,
    left: AtomicU64,
    failures: AtomicU64,
    steps: AtomicU64,
    panics: AtomicU64,
}

/// Counts a member that panics; nobody joins the threads of those that came later.
struct PanicCount<'a>(&'a Counts);

impl Drop for PanicCount<'_> {
    fn drop(&mut self) {
        add(&self.0.panics, u64::from(thread::panicking()));
    }
}

fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

fn floats(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count)
        .map(|_| rng.random_range(-1.0_f32..1.0))
        .collect()
}

impl Soak {
    fn new(seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let (mut parts, mut experts, mut reference) = (Vec::new(), Vec::new(), Vec::new());
        for layer in 0..LAYERS {
            let spec = layer_spec(layer, [EXPERTS, TOP_K, HIDDEN, WIDTH]);
            let gate = GateTensors::new(floats(&mut rng, EXPERTS * HIDDEN));
            let config = FusedMoeConfig::from_spec(&spec)
                .with_kernel(CpuKernel::with_threads(1).unwrap())
                .with_reduction(Reduction::PerSlot);
            let mut value = || rng.random_range(-1.0_f32..1.0);
            let all: Vec<Arc<ExpertMlp>> = (0..EXPERTS)
                .map(|_| Arc::new(expert(HIDDEN, WIDTH, &mut value).unwrap()))
                .collect();
            let weights = ExpertWeights::new(HIDDEN, WIDTH, all.clone()).unwrap();
            let device = Device::flex();
            let alone = config.init_packed(gate.clone(), Arc::new(weights), &device);
            reference.push(alone.unwrap());
            parts.push(LayerParts::new(spec, config, gate));
            experts.push(all);
        }
        let config = LiveConfig::new(Arc::new(Shuffle { seed }))
            .with_interval(2)
            .with_redundant_experts(4)
            .with_bytes_per_step(20_000)
            .with_retry(5);
        Self {
            parts,
            experts: Arc::new(Memory(experts)),
            reference,
            config,
            seed,
            stop: AtomicBool::new(false),
            counts: Counts::default(),
        }
    }

    fn initial(&self) -> ModelPlacement {
        let all = (0..EXPERTS).collect();
        let offsets = (0..=RANKS).map(|r| r * EXPERTS / RANKS).collect();
        let layer = Placement::new(EXPERTS, all, offsets).unwrap();
        ModelPlacement::new(vec![layer; LAYERS]).unwrap()
    }

    /// One member's life. It is lost or leaves as the seed has it, member 0 excepted.
    fn live(self: &Arc<Self>, world: &ThreadWorld, member: ThreadMember) {
        let _count = PanicCount(&self.counts);
        let id = member.id();
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(id + 1);
        let (parts, config) = (self.parts.clone(), self.config.clone());
        let source = self.experts.clone();
        let mut live = LiveRank::start(member, parts, source, self.initial(), config).unwrap();
        let end = live.step() + CHANGE * rng.random_range(1..=RANKS as u64);
        let silent = rng.random_bool(0.5);
        while !self.stop.load(Ordering::Relaxed) {
            if id > 0 && live.step() >= end {
                if silent {
                    add(&self.counts.lost, 1);
                    self.replace(world);
                    return;
                }
                live.set_leaving(true);
            }
            let step = self.step(&live, id).and_then(|()| live.end_step());
            let events = match step {
                Ok(report) => {
                    add(&self.counts.bytes, report.sent_bytes);
                    self.counts.steps.fetch_max(report.step, Ordering::Relaxed);
                    report.events
                }
                Err(_) if self.stop.load(Ordering::Relaxed) => return,
                Err(error) if error.ends_group() => vec![live.recover().unwrap()],
                Err(error) => panic!("{error}"),
            };
            for event in events {
                match event {
                    Event::Left => {
                        add(&self.counts.left, 1);
                        self.replace(world);
                        return;
                    }
                    Event::Committed { .. } => add(&self.counts.commits, 1),
                    Event::Failed { reason } => {
                        eprintln!("failed: {reason}");
                        add(&self.counts.failures, 1);
                    }
                    Event::Regrouped { .. } if id == 0 => add(&self.counts.regroups, 1),
                    _ => {}
                }
            }
        }
    }

    /// Another member comes for one that has gone.
    fn replace(self: &Arc<Self>, world: &ThreadWorld) {
        let (soak, world, member) = (self.clone(), world.clone(), world.enter());
        thread::spawn(move || soak.live(&world, member));
    }

    fn step(&self, live: &LiveRank, id: u64) -> Result<(), LiveError> {
        for (layer, reference) in self.reference.iter().enumerate() {
            let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ live.step());
            rng.set_stream(id * LAYERS as u64 + layer as u64);
            let count = rng.random_range(0..12_usize);
            let rows = TensorData::new(floats(&mut rng, count * HIDDEN), [count, HIDDEN]);
            let rows = Tensor::<2>::from_data(rows, &Device::flex());
            let got = live.forward(layer, rows.clone(), ForwardOptions::new())?;
            let values = |t: Tensor<2>| t.into_data().try_to_vec::<f32>().unwrap();
            let expected = values(reference.forward(rows).unwrap());
            let outputs = values(got.inner.output);
            let mut unserved = got.unserved.iter().map(|u| u.token).peekable();
            let rows = expected.chunks(HIDDEN).zip(outputs.chunks(HIDDEN));
            for (token, (expected, got)) in rows.enumerate() {
                if unserved.next_if_eq(&token).is_some() {
                    add(&self.counts.unserved, 1);
                    continue;
                }
                let same = expected
                    .iter()
                    .zip(got)
                    .all(|(a, b)| a.to_bits() == b.to_bits());
                add(&self.counts.wrong, u64::from(!same));
                add(&self.counts.outputs, 1);
            }
        }
        Ok(())
    }
}

/// Ends the process with an error if nothing has happened for too long: threads that hang are not
/// waited for.
fn give_up_after(since: Instant, what: &str) {
    if since.elapsed() > PATIENCE {
        eprintln!("{what} in the last {} s", PATIENCE.as_secs());
        std::process::exit(1);
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let mut next = |default: u64| {
        arguments
            .next()
            .map_or(default, |text| text.parse().unwrap())
    };
    let (seconds, seed) = (next(600), next(0));
    let soak = Arc::new(Soak::new(seed));
    let world = ThreadWorld::new(RANKS);
    let members: Vec<_> = (0..RANKS)
        .map(|_| {
            let (soak, world, member) = (soak.clone(), world.clone(), world.enter());
            thread::spawn(move || soak.live(&world, member))
        })
        .collect();
    let start = Instant::now();
    let (mut last, mut since) = (0, Instant::now());
    while start.elapsed() < Duration::from_secs(seconds) {
        thread::sleep(POLL);
        let steps = soak.counts.steps.load(Ordering::Relaxed);
        if steps != last {
            (last, since) = (steps, Instant::now());
        }
        give_up_after(since, &format!("no step after step {steps}"));
    }
    // Members that are stopped on their way into a group may well panic; that is no finding.
    let panics = soak.counts.panics.load(Ordering::Relaxed);
    soak.stop.store(true, Ordering::Relaxed);
    let (first, since) = (members.into_iter().next().unwrap(), Instant::now());
    while !first.is_finished() {
        give_up_after(since, "member 0 does not end");
        thread::sleep(POLL);
    }
    assert!(first.join().is_ok(), "member 0 failed");
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let counts = &soak.counts;
    let report = serde_json::json!({
        "seconds": seconds,
        "seed": seed,
        "steps": read(&counts.steps),
        "outputs": read(&counts.outputs),
        "wrong_outputs": read(&counts.wrong),
        "unserved_tokens": read(&counts.unserved),
        "commits_over_ranks": read(&counts.commits),
        "moved_bytes": read(&counts.bytes),
        "regroups": read(&counts.regroups),
        "ranks_lost": read(&counts.lost),
        "ranks_left": read(&counts.left),
        "failures": read(&counts.failures),
        "panics": panics,
    });
    println!("{report}");
    assert_eq!(read(&counts.wrong), 0, "wrong outputs");
    assert_eq!(panics, 0, "members that failed");
    assert!(read(&counts.commits) > 0, "nothing moved");
}
