//! What a rank of a live run does, as a thread or as a process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use moekit::burn::tensor::{DType, Tensor};
use moekit::fused_moe::{ForwardOptions, FusedMoeConfig, Reduction};
use moekit::kernels::CpuKernel;
use moekit::live::{
    CheckpointExperts, Event, LayerParts, LiveConfig, LiveError, LiveOutput, LiveRank, Membership,
};
use moekit::parallel::{CommError, ThreadWorld};
use moekit::placement::{ModelPlacement, Placement};
use moekit::quant::MoeLayerSpec;
use moekit::routing::Rank;

use super::record::RankStep;
use super::stream::{Scripted, Stream};

/// What all ranks have in common.
#[derive(Debug)]
pub(super) struct Setup {
    pub(super) specs: Vec<MoeLayerSpec>,
    pub(super) experts: CheckpointExperts,
    pub(super) kernel: CpuKernel,
    pub(super) reduction: Reduction,
    pub(super) stream: Stream,
    pub(super) initial: ModelPlacement,
    pub(super) config: LiveConfig,
    pub(super) steps: u64,
    /// Whether to wait for what otherwise goes on beside the steps.
    pub(super) synchronous: bool,
    pub(super) changes: Vec<Change>,
    pub(super) stop: AtomicBool,
    /// Every how many steps outputs are compared with those of one rank.
    pub(super) check: Option<u64>,
    pub(super) reference: Option<Reference>,
}

/// A change of the group in some step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Change {
    pub(super) step: u64,
    pub(super) what: What,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.what {
            What::Ranks(ranks) => write!(f, "--resize {}:{ranks}", self.step),
            What::Lose(rank) => write!(f, "--lose {}:{rank}", self.step),
        }
    }
}

/// What changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The group grows or shrinks to so many ranks.
    Ranks(usize),
    /// A rank is lost without notice.
    Lose(usize),
}

/// One rank that holds all experts, to compare with.
#[derive(Debug)]
pub(super) struct Reference(Mutex<(LiveRank, Vec<Arc<Scripted>>)>);

impl Setup {
    /// The sizes that the group was to have up to a step, one after the other.
    fn sizes(&self, step: u64) -> impl DoubleEndedIterator<Item = usize> {
        let past = self.changes.iter().filter(move |c| c.step <= step);
        past.filter_map(|change| match change.what {
            What::Ranks(ranks) => Some(ranks),
            What::Lose(_) => None,
        })
    }

    /// How many ranks there should be in a step, if that has changed.
    fn wanted_ranks(&self, step: u64) -> Option<usize> {
        self.sizes(step).next_back()
    }

    /// Whether a rank is lost in a step.
    fn is_lost(&self, step: u64, rank: usize) -> bool {
        let lost = |c: &Change| c.step == step && c.what == What::Lose(rank);
        self.changes.iter().any(lost)
    }

    /// The layers of a rank, and what dictates the choice of each.
    fn layers(&self) -> Result<(Vec<LayerParts>, Vec<Arc<Scripted>>), LiveError> {
        let scripts: Vec<Arc<Scripted>> = self.specs.iter().map(|_| Arc::default()).collect();
        let parts = self.specs.iter().zip(&scripts).enumerate();
        let parts = parts.map(|(layer, (spec, script))| {
            let config = FusedMoeConfig::from_spec(spec)
                .with_custom_routing(script.clone())
                .with_kernel(self.kernel.clone())
                .with_reduction(self.reduction);
            self.experts.parts(layer, config)
        });
        Ok((parts.collect::<Result<_, _>>()?, scripts))
    }

    /// The same with a rank by itself that holds everything, if outputs are to be compared.
    pub(super) fn with_reference(mut self) -> Result<Self, LiveError> {
        if self.check.is_none() {
            return Ok(self);
        }
        let experts = self.initial.num_logical_experts();
        let all = Placement::new(experts, (0..experts).collect(), vec![0, experts])?;
        let initial = ModelPlacement::new(vec![all; self.specs.len()])?;
        let (parts, scripts) = self.layers()?;
        let config = LiveConfig::new(self.config.strategy().clone())
            .with_load_watching(false)
            .with_staging_bytes(u64::MAX);
        let source = Arc::new(self.experts.clone());
        let alone = ThreadWorld::new(1).enter();
        let rank = LiveRank::start(alone, parts, source, initial, config)?;
        self.reference = Some(Reference(Mutex::new((rank, scripts))));
        Ok(self)
    }
}

/// Counts the sizes of the group that have been seen to. Every rank does, as each may become rank 0.
#[derive(Debug)]
struct Growth(usize);

impl Growth {
    /// As a rank that comes into a group after a step has it: what is past is not its business.
    fn after(setup: &Setup, step: u64) -> Self {
        Self(setup.sizes(step).count())
    }

    /// How many ranks are to come before a step of so many.
    fn missing(&mut self, setup: &Setup, step: u64, ranks: usize) -> usize {
        let due = setup.sizes(step).count();
        if due <= self.0 {
            return 0;
        }
        self.0 = due;
        let wanted = setup.wanted_ranks(step);
        wanted.map_or(0, |wanted| wanted.saturating_sub(ranks))
    }

    /// The last size is still to be seen to.
    fn again(&mut self) {
        self.0 = self.0.saturating_sub(1);
    }
}

/// What a rank tells.
pub(super) enum News {
    /// It has done a step.
    Step(Box<RankStep>),
    /// It is about to be lost, with all that it holds.
    Lost,
}

/// Runs one rank until all steps are done, it leaves or is lost, and tells of each step.
///
/// # Arguments
///
/// - `grow` - lets so many ranks come, and returns how many do. Rank 0 calls it.
pub(super) fn take_part(
    setup: &Setup,
    member: impl Membership + 'static,
    mut grow: impl FnMut(usize) -> Result<usize, LiveError>,
    mut tell: impl FnMut(News) -> Result<(), LiveError>,
) -> Result<(), LiveError> {
    let (parts, scripts) = setup.layers()?;
    let Some(mut live) = start(setup, member, parts)? else {
        return Ok(());
    };
    let mut growth = Growth::after(setup, live.step());
    // The first step of a group after one that has failed: survivors that get the number of one that
    // is lost in it are not.
    let mut resumed = 0;
    // What happened between steps, for the next report.
    let mut events = Vec::new();
    while live.step() < setup.steps && !setup.stop.load(Ordering::Relaxed) {
        let (rank, ranks) = (live.rank().map_or(0, Rank::index), live.members().len());
        let next = live.step() + 1;
        let missing = growth.missing(setup, next, ranks);
        if rank == 0 && missing > 0 && grow(missing)? < missing {
            growth.again();
        }
        let is_lost = |step| ranks > 1 && step > resumed && setup.is_lost(step, rank);
        if is_lost(next) {
            return tell(News::Lost);
        }
        let wanted = setup.wanted_ranks(next);
        live.set_leaving(wanted.is_some_and(|wanted| rank >= wanted));
        let passes = step(setup, &live, &scripts, (rank, ranks));
        let ended = passes.and_then(|mut report| {
            let ended = live.end_step();
            match &ended {
                Ok(ended) => {
                    report.report.clone_from(ended);
                    report.recovered = !events.is_empty();
                    report.report.events.splice(0..0, events.drain(..));
                }
                // Its outputs are there, whatever comes of the group.
                Err(_) => report.report.step = next,
            }
            tell(News::Step(Box::new(report)))?;
            ended
        });
        match ended {
            Ok(ended) if ended.events.contains(&Event::Left) => return Ok(()),
            Ok(_) => {}
            Err(_) if setup.stop.load(Ordering::Relaxed) => return Ok(()),
            Err(error) if error.ends_group() => {
                // The last word of one that is lost in the next step may not have arrived in this
                // one; whoever is to be lost with it does not go on either.
                if is_lost(live.step() + 1) {
                    return tell(News::Lost);
                }
                let event = live.recover().map_err(|other| match other {
                    // What went wrong every time says more.
                    LiveError::NoProgress { .. } => error,
                    other => other,
                })?;
                events.push(event);
                resumed = live.step() + 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// A rank with its layers. `None` if it was to come, but the run has ended before it was let in.
fn start(
    setup: &Setup,
    member: impl Membership + 'static,
    parts: Vec<LayerParts>,
) -> Result<Option<LiveRank>, LiveError> {
    let source = Arc::new(setup.experts.clone());
    let (initial, config) = (setup.initial.clone(), setup.config.clone());
    match LiveRank::start(member, parts, source, initial, config) {
        Err(LiveError::Group(CommError::NoGroup)) => Ok(None),
        started => started.map(Some),
    }
}

/// The forward passes of a step.
fn step(
    setup: &Setup,
    live: &LiveRank,
    scripts: &[Arc<Scripted>],
    (rank, ranks): (usize, usize),
) -> Result<RankStep, LiveError> {
    let number = live.step();
    let mut report = RankStep {
        rank,
        ranks,
        generation: 0,
        report: Default::default(),
        recovered: false,
        forward: Duration::ZERO,
        unserved: 0,
        wrong: 0,
        compared: 0,
    };
    let mut outputs = Vec::with_capacity(scripts.len());
    for (layer, script) in scripts.iter().enumerate() {
        let (rows, ids) = setup.stream.batch(number, layer, rank, ranks);
        script.set(ids.clone());
        let start = Instant::now();
        let output = live.forward(layer, rows.clone(), ForwardOptions::new())?;
        report.forward += start.elapsed();
        report.unserved += output.unserved.len();
        report.generation += output.generation;
        outputs.push((rows, ids, output));
    }
    if let (Some(reference), Some(every)) = (&setup.reference, setup.check)
        && number.is_multiple_of(every)
    {
        for (layer, (rows, ids, output)) in outputs.into_iter().enumerate() {
            report.compared += rows.dims()[0] - output.unserved.len();
            let exact = setup.reduction == Reduction::PerSlot;
            report.wrong += reference.compare(layer, rows, ids, &output, exact)?;
        }
    }
    Ok(report)
}

impl Reference {
    /// Tokens whose output differs.
    fn compare(
        &self,
        layer: usize,
        rows: Tensor<2>,
        ids: Vec<i64>,
        output: &LiveOutput,
        exact: bool,
    ) -> Result<usize, LiveError> {
        let [_, width] = rows.dims();
        let expected = {
            let rank = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            rank.1[layer].set(ids);
            rank.0.forward(layer, rows, ForwardOptions::new())?
        };
        let (expected, got) = (
            values(expected.inner.output)?,
            values(output.inner.output.clone())?,
        );
        let mut unserved = output.unserved.iter().map(|u| u.token).peekable();
        let mut wrong = 0;
        for (token, (e, g)) in expected.chunks(width).zip(got.chunks(width)).enumerate() {
            if unserved.next_if_eq(&token).is_none() && !same(e, g, exact) {
                wrong += 1;
            }
        }
        Ok(wrong)
    }
}

/// Bit by bit, or within 1e-5 of the token's largest value.
fn same(expected: &[f32], got: &[f32], exact: bool) -> bool {
    let largest = expected.iter().fold(0.0_f32, |max, v| max.max(v.abs()));
    let mut pairs = expected.iter().zip(got);
    pairs.all(|(e, g)| match exact {
        true => e.to_bits() == g.to_bits(),
        false => (e - g).abs() <= 1e-5 * largest,
    })
}

fn values(tensor: Tensor<2>) -> Result<Vec<f32>, LiveError> {
    let data = tensor.cast(DType::F32).into_data();
    data.try_to_vec()
        .map_err(|e| LiveError::Config(format!("an output cannot be read: {e}")))
}
