//! Small layers, ranks that are threads, and a watchdog.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "a module of several tests"
)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

pub mod faulty;
pub mod fixtures;
pub mod processes;
#[path = "../../../parallel/src/watchdog.rs"]
mod watchdog;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use burn::tensor::{Device, Tensor, TensorData};
use moekit_fused_moe::{
    ForwardOptions, FusedMoe, FusedMoeConfig, GateTensors, Reduction, SharedExpertsConfig,
};
use moekit_live::{
    Event, ExpertSource, LayerParts, LiveConfig, LiveError, LiveOutput, LiveRank, Membership,
    SourceError,
};
use moekit_parallel::ThreadWorld;
use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, typetag,
};
use moekit_quant::{ExpertMlp, ExpertWeights};
use moekit_routing::LogicalExpert;
use moekit_testkit::layer_spec;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

pub(crate) use watchdog::watched;

pub const EXPERTS: usize = 6;
pub const HIDDEN: usize = 8;
pub const WIDTH: usize = 4;
pub const TOP_K: usize = 2;

fn floats(rng: &mut ChaCha8Rng, count: usize) -> Vec<f32> {
    (0..count)
        .map(|_| rng.random_range(-1.0_f32..1.0))
        .collect()
}

fn expert(rng: &mut ChaCha8Rng, hidden: usize, width: usize) -> Arc<ExpertMlp> {
    let expert = moekit_testkit::expert(hidden, width, || rng.random_range(-1.0_f32..1.0));
    Arc::new(expert.unwrap())
}

/// Random experts of one layer.
pub fn experts(count: usize, hidden: usize, width: usize) -> Vec<Arc<ExpertMlp>> {
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    (0..count)
        .map(|_| expert(&mut rng, hidden, width))
        .collect()
}

/// The model of a test: layers of which every rank can be made, and where experts are read.
#[derive(Clone, Debug)]
pub struct Model {
    pub parts: Vec<LayerParts>,
    pub source: Arc<Shard>,
    reference: Vec<Arc<FusedMoe>>,
    pub hidden: usize,
}

/// Experts in memory that can vanish.
#[derive(Debug, Default)]
pub struct Shard {
    experts: Vec<Vec<Arc<ExpertMlp>>>,
    /// Whether reads fail.
    pub gone: AtomicBool,
    /// Whether reads never return.
    pub stuck: AtomicBool,
    /// Experts read after the first placement.
    pub reads: Mutex<Vec<(usize, usize)>>,
}

impl ExpertSource for Shard {
    fn read(&self, layer: usize, expert: LogicalExpert) -> Result<Arc<ExpertMlp>, SourceError> {
        if self.gone.load(Ordering::Relaxed) {
            return Err("shard 2 of 3: no such file".into());
        }
        while self.stuck.load(Ordering::Relaxed) {
            thread::park();
        }
        self.reads.lock().unwrap().push((layer, expert.index()));
        Ok(self.experts[layer][expert.index()].clone())
    }
}

impl Model {
    /// Unquantized layers of random experts.
    pub fn random(layers: usize, reduction: Reduction) -> Self {
        let (parts, experts) = random_layers(layers, reduction, |config| config, |parts| parts);
        Self::new(parts, experts, HIDDEN)
    }

    /// The same with a shared expert in a slot of every rank; compared with one rank that computes
    /// it apart.
    pub fn with_fused_shared(layers: usize, reduction: Reduction) -> Self {
        let shared = experts(1, HIDDEN, WIDTH);
        let configure = |config: FusedMoeConfig| {
            let shared = SharedExpertsConfig::new(WIDTH);
            config.with_shared_experts(shared)
        };
        let (apart, experts) = random_layers(layers, reduction, configure, |parts| {
            parts.with_shared(shared[0].clone())
        });
        let (parts, _) = random_layers(layers, reduction, configure, |parts| {
            parts.with_fused_shared(shared.clone())
        });
        Self {
            parts,
            ..Self::new(apart, experts, HIDDEN)
        }
    }

    pub fn new(parts: Vec<LayerParts>, experts: Vec<Vec<Arc<ExpertMlp>>>, hidden: usize) -> Self {
        let reference = parts
            .iter()
            .zip(&experts)
            .map(|(parts, experts)| Arc::new(one_rank(parts, experts)))
            .collect();
        let source = Shard {
            experts,
            ..Shard::default()
        };
        Self {
            parts,
            source: Arc::new(source),
            reference,
            hidden,
        }
    }

    /// Bytes of the largest expert on its way, as a rank tells that has no room for one.
    pub fn encoded_expert(&self) -> u64 {
        let config = rotating().with_staging_bytes(1);
        match self.start(ThreadWorld::new(1).enter(), 1, config) {
            Err(LiveError::Staging { needed, .. }) => needed,
            other => panic!("{other:?}"),
        }
    }

    /// Experts dealt to the ranks like cards.
    pub fn dealt(&self, ranks: usize) -> ModelPlacement {
        let experts = self.source.experts[0].len();
        let dealt: Vec<Vec<usize>> = (0..ranks)
            .map(|rank| (rank..experts).step_by(ranks).collect())
            .collect();
        let layer = Placement::from_ranks(experts, &dealt).unwrap();
        ModelPlacement::new(vec![layer; self.parts.len()]).unwrap()
    }

    pub fn start(
        &self,
        membership: impl Membership + 'static,
        ranks: usize,
        config: LiveConfig,
    ) -> Result<LiveRank, LiveError> {
        let (parts, source) = (self.parts.clone(), self.source.clone());
        LiveRank::start(membership, parts, source, self.dealt(ranks), config)
    }

    /// The tokens of a member in a step, of none in some steps.
    pub fn tokens(&self, layer: usize, member: u64, step: u64) -> Tensor<2> {
        let count = ((member + step + layer as u64) % 4) as usize * 2;
        let mut rng = ChaCha8Rng::seed_from_u64(1000 * step + member);
        rng.set_stream(layer as u64);
        let data = TensorData::new(floats(&mut rng, count * self.hidden), [count, self.hidden]);
        Tensor::from_data(data, &Device::flex())
    }

    /// One step of a rank: every layer's output is compared with that of one rank which holds all.
    ///
    /// # Returns
    ///
    /// Tokens that were not served.
    pub fn step(&self, live: &LiveRank, member: u64, exact: bool) -> Result<usize, LiveError> {
        let mut unserved = 0;
        for layer in 0..self.parts.len() {
            let tokens = self.tokens(layer, member, live.step());
            let got = live.forward(layer, tokens.clone(), ForwardOptions::new())?;
            self.compare(layer, tokens, &got, exact);
            unserved += got.unserved.len();
        }
        Ok(unserved)
    }

    pub fn compare(&self, layer: usize, tokens: Tensor<2>, got: &LiveOutput, exact: bool) {
        let expected = self.reference[layer].forward(tokens).unwrap();
        let (expected, got_values) = (values(expected), values(got.inner.output.clone()));
        assert_eq!(expected.len(), got_values.len());
        let rows = expected
            .chunks(self.hidden)
            .zip(got_values.chunks(self.hidden));
        let mut unserved = got.unserved.iter().map(|u| u.token).peekable();
        for (token, (expected, got)) in rows.enumerate() {
            if unserved.next_if_eq(&token).is_some() {
                assert!(got.iter().all(|v| v.is_nan()));
                continue;
            }
            let largest = expected.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
            for (e, g) in expected.iter().zip(got) {
                if exact {
                    assert_eq!(e.to_bits(), g.to_bits(), "layer {layer}: {e} became {g}");
                } else {
                    assert!(
                        (e - g).abs() <= 1e-5 * largest,
                        "layer {layer}: {e} became {g}"
                    );
                }
            }
        }
    }
}

pub fn values(tensor: Tensor<2>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

/// Layers of random experts, and these.
fn random_layers(
    layers: usize,
    reduction: Reduction,
    configure: impl Fn(FusedMoeConfig) -> FusedMoeConfig,
    complete: impl Fn(LayerParts) -> LayerParts,
) -> (Vec<LayerParts>, Vec<Vec<Arc<ExpertMlp>>>) {
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    let mut parts = Vec::new();
    let mut experts = Vec::new();
    for layer in 0..layers {
        let spec = layer_spec(layer, [EXPERTS, TOP_K, HIDDEN, WIDTH]);
        let gate = GateTensors::new(floats(&mut rng, EXPERTS * HIDDEN));
        let config = FusedMoeConfig::from_spec(&spec).with_reduction(reduction);
        parts.push(complete(LayerParts::new(spec, configure(config), gate)));
        let expert = |_| expert(&mut rng, HIDDEN, WIDTH);
        experts.push((0..EXPERTS).map(expert).collect());
    }
    (parts, experts)
}

/// The layer on one rank.
pub fn one_rank(parts: &LayerParts, experts: &[Arc<ExpertMlp>]) -> FusedMoe {
    let first = &experts[0];
    let (hidden, width) = (first.hidden_size(), first.intermediate_size());
    let weights = ExpertWeights::new(hidden, width, experts.to_vec()).unwrap();
    let weights = match parts.shared() {
        Some(shared) => weights.with_shared(shared.clone()).unwrap(),
        None => weights,
    };
    parts
        .config()
        .init_packed(parts.gate().clone(), Arc::new(weights), &Device::flex())
        .unwrap()
}

/// Passes every expert on by some slots: each plan moves something.
#[derive(Debug, Serialize, Deserialize)]
pub struct Rotate {
    pub by: usize,
}

#[typetag::serde(name = "live-test-rotate")]
impl PlacementStrategy for Rotate {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let (experts, slots) = (request.num_logical_experts(), request.num_slots());
        let layer = |l: usize| {
            let current = request
                .current()
                .map(|c| c.layers()[l].physical_to_logical());
            let next = match current.filter(|c| c.len() == slots) {
                Some(current) => (0..slots)
                    .map(|s| current[(s + self.by) % slots].index())
                    .collect(),
                None => (0..slots).map(|s| s % experts).collect(),
            };
            Placement::new(experts, next, request.rank_offsets())
        };
        let layers = (0..request.num_layers())
            .map(layer)
            .collect::<Result<_, _>>()?;
        ModelPlacement::new(layers)
    }
}

pub fn rotating() -> LiveConfig {
    LiveConfig::new(Arc::new(Rotate { by: 1 }))
        .with_interval(3)
        .with_retry(2)
}

/// Whether all ranks of a group of that size hold experts of every layer, and nothing moves.
pub fn spread_over(live: &LiveRank, ranks: usize) -> bool {
    let all =
        |p: &Placement| p.num_ranks() == ranks && p.rank_offsets().windows(2).all(|w| w[1] > w[0]);
    live.placements().iter().all(all) && live.state().name() == "idle"
}

/// What a rank saw.
#[derive(Debug, Default)]
pub struct Seen {
    pub events: Vec<Event>,
    pub errors: Vec<String>,
    pub unserved: usize,
    pub placements: Vec<Placement>,
    pub absent: usize,
    pub states: Vec<String>,
}

impl Seen {
    pub fn commits(&self) -> usize {
        let commit = |e: &&Event| matches!(e, Event::Committed { .. });
        self.events.iter().filter(commit).count()
    }

    pub fn failures(&self) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|e| match e {
                Event::Failed { reason } => Some(reason.as_str()),
                _ => None,
            })
            .collect()
    }
}

/// Runs steps until `steps` are done, or the rank has left, and recovers from errors on the way. No
/// step is without its outputs.
pub fn run(model: &Model, mut live: LiveRank, member: u64, steps: u64, exact: bool) -> Seen {
    let mut seen = Seen::default();
    let mut without = live.step()..steps;
    while live.step() < steps {
        let number = live.step();
        let outputs = model.step(&live, member, exact);
        assert!(
            number <= without.start,
            "step {} has no outputs",
            without.start
        );
        if outputs.is_ok() && number == without.start {
            without.next();
        }
        let step = outputs.and_then(|unserved| Ok((unserved, live.end_step()?)));
        match step {
            Ok((unserved, report)) => {
                seen.unserved += unserved;
                seen.states.push(report.state.to_string());
                seen.events.extend(report.events);
            }
            Err(error) if error.ends_group() => {
                seen.errors.push(error.to_string());
                seen.events.push(live.recover().unwrap());
            }
            Err(error) => panic!("{error}"),
        }
        if seen.events.last() == Some(&Event::Left) {
            return seen;
        }
    }
    assert!(without.is_empty(), "steps {without:?} have no outputs");
    seen.placements = live.placements();
    seen.absent = (0..model.parts.len()).map(|l| live.absent(l).len()).sum();
    seen
}

/// The reasons of what failed.
pub fn failures(events: Vec<Event>) -> impl Iterator<Item = String> {
    events.into_iter().filter_map(|event| match event {
        Event::Failed { reason } => Some(reason),
        _ => None,
    })
}
