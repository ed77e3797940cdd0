//! What a strategy would have done: plan on the past, measure on what came next.
//!
//! The trace is cut at step `W` (the window), `W + I` (the interval), `W + 2 I` and so on. At each
//! cut the strategy plans with the load of the last `W` steps and the placement in force; the plan
//! holds for the next `I` steps, and each of them is measured under a [`TokenSplit`].

mod report;
mod split;

use std::fmt::Debug;
use std::time::Instant;

use moekit_placement::{
    LoadTrace, MigrationBudget, MigrationPlanner, ModelPlacement, PlacementChange,
    PlacementRequest, PlacementStrategy, balance,
};
use moekit_routing::{Placement, RoutingTable, Topology};

use crate::EvalError;
use report::{Balances, mean};

pub use report::{AggregateBalance, Simulated, SimulationReport};
pub use split::{
    EqualSplit, SelectorSplit, SlotLoads, SplitContext, TokenSplit, WaterfillSplit, off_node_blind,
    off_node_nearest,
};

/// What is possible at best, for those who can compute it.
pub trait Certificate: Debug {
    /// The largest balance that any placement of a layer's load `[E]` can have on ranks of these
    /// slots `[R]` and relative speeds, which are empty if all ranks are alike.
    fn balance_bound(&self, load: &[f64], slots_per_rank: &[usize], speeds: &[f64]) -> Option<f64> {
        let _ = (load, slots_per_rank, speeds);
        None
    }

    /// The smallest load of the busiest rank over all splits of the counts `[E]` over the slots.
    fn smallest_maximum(&self, table: &RoutingTable, counts: &[f64]) -> Option<f64> {
        let _ = (table, counts);
        None
    }
}

/// A trace, the shape to plan for, and how often to plan.
///
/// ```
/// use moekit_eval::simulate::{EqualSplit, Simulation};
/// use moekit_eval::workload::{Profile, Workload};
/// use moekit_placement::{
///     ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, Topology,
///     typetag,
/// };
///
/// #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// struct Dealt;
///
/// #[typetag::serde(name = "dealt")]
/// impl PlacementStrategy for Dealt {
///     fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
///         let slots = (0..request.num_slots()).map(|s| s % request.num_logical_experts());
///         let layer = Placement::new(
///             request.num_logical_experts(), slots.collect(), request.rank_offsets(),
///         )?;
///         ModelPlacement::new(vec![layer; request.num_layers()])
///     }
/// }
///
/// let trace = Workload::new(Profile::Uniform, 8, 2, 30, 80_000)?.generate()?;
/// let topology = Topology::new(4)?;
/// let shape = PlacementRequest::new(2, 8, &topology)?.with_redundant_experts(4)?;
/// let simulated = Simulation::new(&trace, shape, 10, 5)?.run(&Dealt, &mut EqualSplit)?;
/// assert_eq!(simulated.report.intervals, 4);
/// assert_eq!(simulated.report.slots_moved_fraction, 0.0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct Simulation<'a> {
    trace: &'a LoadTrace,
    shape: PlacementRequest<'a>,
    window: usize,
    interval: usize,
    budget: MigrationBudget,
    expert_bytes: Option<u64>,
    certificate: Option<&'a dyn Certificate>,
    progress: Option<&'a dyn Fn(usize, usize)>,
}

impl Debug for Simulation<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Simulation")
            .field("shape", &self.shape)
            .field("window", &self.window)
            .field("interval", &self.interval)
            .field("budget", &self.budget)
            .field("certificate", &self.certificate)
            .finish_non_exhaustive()
    }
}

impl<'a> Simulation<'a> {
    /// A simulation without a migration budget.
    ///
    /// # Arguments
    ///
    /// - `shape` - what to plan for: layers, experts, topology, slots, expert groups. A placement
    ///   in force is the one that the first plan replaces.
    /// - `window` - steps that a plan looks back on.
    /// - `interval` - steps from one plan to the next.
    ///
    /// # Errors
    ///
    /// If window or interval is zero, the trace ends with the first window, or its shape is not
    /// the one to plan for.
    pub fn new(
        trace: &'a LoadTrace,
        shape: PlacementRequest<'a>,
        window: usize,
        interval: usize,
    ) -> Result<Self, EvalError> {
        for (what, got) in [("the window", window), ("the interval", interval)] {
            if got == 0 {
                return Err(EvalError::setting(what, got, "1 step or more"));
            }
        }
        let steps = trace.steps().len();
        if steps < 2 {
            let expected = "2 steps or more: some to plan on, some to measure";
            return Err(EvalError::setting("the trace", "1 step", expected));
        }
        if steps <= window {
            let expected =
                format!("below {steps}, the steps of the trace: some must be left to measure");
            return Err(EvalError::setting("the window", window, expected));
        }
        // Asked only whether the shapes agree: a plan sees its window, never the whole trace.
        shape.clone().with_trace(trace)?;
        Ok(Self {
            trace,
            budget: shape.budget(),
            expert_bytes: None,
            shape,
            window,
            interval,
            certificate: None,
            progress: None,
        })
    }

    /// How much may move at each re-plan. The plan of a strategy that does not keep it is cut, see
    /// `plan_within_budget` of strategies.
    #[must_use]
    pub fn with_budget(mut self, budget: MigrationBudget) -> Self {
        self.budget = budget;
        self
    }

    /// The bytes of one expert, for the bytes that re-plans move.
    #[must_use]
    pub fn with_expert_bytes(mut self, bytes: u64) -> Self {
        self.expert_bytes = Some(bytes);
        self
    }

    /// Who knows what is possible at best.
    #[must_use]
    pub fn with_certificate(mut self, certificate: &'a dyn Certificate) -> Self {
        self.certificate = Some(certificate);
        self
    }

    /// Is told, after every interval, how many of how many are done.
    #[must_use]
    pub fn with_progress(mut self, progress: &'a dyn Fn(usize, usize)) -> Self {
        self.progress = Some(progress);
        self
    }

    /// Plans that a run makes.
    pub fn num_intervals(&self) -> usize {
        (self.trace.steps().len() - self.window).div_ceil(self.interval)
    }

    /// Runs a strategy under a split.
    ///
    /// # Errors
    ///
    /// Those of the strategy and the split; if the split breaks its contract.
    pub fn run(
        &self,
        strategy: &(dyn PlacementStrategy + 'static),
        split: &mut dyn TokenSplit,
    ) -> Result<Simulated, EvalError> {
        let mut run = Run::at_speeds(strategy.speeds());
        for interval in 0..self.num_intervals() {
            self.plan(strategy, interval, &mut run)?;
            self.measure(split, interval, &mut run)?;
            if let Some(progress) = self.progress {
                progress(interval + 1, self.num_intervals());
            }
        }
        Ok(self.finish(strategy.name(), split.name(), run))
    }

    /// The first step of an interval.
    fn start(&self, interval: usize) -> usize {
        self.window + interval * self.interval
    }

    fn plan(
        &self,
        strategy: &(dyn PlacementStrategy + 'static),
        interval: usize,
        run: &mut Run,
    ) -> Result<(), EvalError> {
        let past = self.start(interval) - self.window..self.start(interval);
        let load = self.trace.window(past.clone())?;
        let trace = LoadTrace::new(self.trace.steps()[past].to_vec())?;
        let mut request = self.shape.clone().with_load(&load)?.with_trace(&trace)?;
        let current = run.placements.last().or(self.shape.current());
        if let Some(current) = current {
            request = request.with_current(current, self.budget)?;
        }
        let start = Instant::now();
        let placement = strategy.plan_within_budget(&request)?;
        run.plan_seconds += start.elapsed().as_secs_f64();
        if let Some(current) = current {
            let moved = |(old, new)| PlacementChange::between(old, new).slots_received();
            let layers = current.layers().iter().zip(placement.layers());
            run.slots_moved += layers.map(moved).sum::<usize>();
            let layers = placement.layers().iter();
            run.slots_planned += layers.map(Placement::num_physical_experts).sum::<usize>();
            run.rounds += self.rounds(current, &placement)?;
            run.replans += 1;
        }
        for (layer, load) in placement.layers().iter().zip(load.layers()) {
            if run.plan.push(&balance::rank_loads(layer, load)?).is_some() {
                let slots = layer.slots_per_rank();
                let bound = self
                    .certificate
                    .and_then(|c| c.balance_bound(load, &slots, strategy.speeds()));
                run.bounds.extend(bound);
            }
        }
        run.placements.push(placement);
        Ok(())
    }

    /// Rounds of the migration to a plan, over all layers.
    fn rounds(&self, current: &ModelPlacement, plan: &ModelPlacement) -> Result<usize, EvalError> {
        let (topology, ranks) = (self.shape.topology(), current.num_ranks());
        // A group that shrinks migrates in the larger of its two sizes.
        let larger = match ranks > topology.num_ranks() {
            true => Topology::new(ranks)?,
            false => topology.clone(),
        };
        let migration = MigrationPlanner::new(&larger).model(current, plan)?;
        Ok(migration.summary().rounds)
    }

    fn measure(
        &self,
        split: &mut dyn TokenSplit,
        interval: usize,
        run: &mut Run,
    ) -> Result<(), EvalError> {
        let Some(placement) = run.placements.last() else {
            return Ok(());
        };
        let topology = self.shape.topology();
        let tables = placement
            .layers()
            .iter()
            .map(|layer| RoutingTable::new(layer.clone(), topology.clone(), 0, interval as u64))
            .collect::<Result<Vec<_>, _>>()?;
        let start = self.start(interval);
        let end = start
            .saturating_add(self.interval)
            .min(self.trace.steps().len());
        let mut sums = vec![vec![0.0; topology.num_ranks()]; tables.len()];
        for step in self.trace.steps()[start - 1..end].windows(2) {
            let layers = step[1].layers().zip(step[0].layers()).enumerate();
            for ((layer, (counts, previous)), table) in layers.zip(&tables) {
                let context = SplitContext {
                    layer,
                    table,
                    counts,
                    previous,
                };
                let slots = checked_split(split, &context)?;
                let ranks = per_rank(table, &slots.loads);
                run.tokens += counts.iter().sum::<f64>();
                run.off_node += slots.off_node;
                run.split_seconds += slots.time.as_secs_f64();
                run.splits += 1;
                if let Some(max) = run.step.push(&ranks) {
                    // The certificate is one of tokens, not of times.
                    let best = self
                        .certificate
                        .filter(|_| run.alike)
                        .and_then(|c| c.smallest_maximum(table, counts));
                    run.gaps.extend(best.map(|best| 1.0 - best / max));
                }
                for (sum, load) in sums[layer].iter_mut().zip(&ranks) {
                    *sum += load;
                }
                run.rank_load.extend(ranks);
            }
        }
        for sum in &sums {
            run.next.push(sum);
        }
        Ok(())
    }

    fn finish(&self, strategy: &str, selector: &str, run: Run) -> Simulated {
        let intervals = run.placements.len();
        let report = SimulationReport {
            strategy: strategy.to_owned(),
            selector: selector.to_owned(),
            balance_plan: run.plan.mean(),
            balance_next: run.next.mean(),
            balance_step_mean: run.step.mean(),
            balance_step_p1: run.step.first_percentile(),
            aggregate: AggregateBalance {
                plan: run.plan.aggregate(),
                next: run.next.aggregate(),
                step: run.step.aggregate(),
            },
            bound: mean(&run.bounds),
            certificate_gap_mean: mean(&run.gaps),
            slots_moved_fraction: run.slots_moved as f64 / run.slots_planned.max(1) as f64,
            slots_moved: run.slots_moved,
            bytes_moved: self
                .expert_bytes
                .map(|bytes| bytes.saturating_mul(run.slots_moved as u64)),
            migration_rounds_mean: run.rounds as f64
                / (self.shape.num_layers() * run.replans.max(1)) as f64,
            off_node_fraction: if run.tokens > 0.0 {
                run.off_node / run.tokens
            } else {
                0.0
            },
            plan_seconds_per_interval: run.plan_seconds / intervals.max(1) as f64,
            split_micros_per_layer: run.split_seconds * 1e6 / run.splits.max(1) as f64,
            intervals,
            replans: run.replans,
            steps: self.trace.steps().len() - self.window,
        };
        Simulated {
            report,
            placements: run.placements,
            interval_starts: (0..intervals).map(|i| self.start(i)).collect(),
            rank_load: run.rank_load,
        }
    }
}

/// What a run has gathered so far.
#[derive(Debug, Default)]
struct Run {
    /// Whether all ranks have one speed.
    alike: bool,
    placements: Vec<ModelPlacement>,
    plan_seconds: f64,
    slots_moved: usize,
    /// Slots of all re-plans.
    slots_planned: usize,
    rounds: usize,
    replans: usize,
    plan: Balances,
    bounds: Vec<f64>,
    next: Balances,
    step: Balances,
    gaps: Vec<f64>,
    tokens: f64,
    off_node: f64,
    split_seconds: f64,
    splits: usize,
    rank_load: Vec<f64>,
}

impl Run {
    fn at_speeds(speeds: &[f64]) -> Self {
        let balances = || Balances::at_speeds(speeds);
        Self {
            alike: speeds.is_empty(),
            plan: balances(),
            next: balances(),
            step: balances(),
            ..Self::default()
        }
    }
}

fn checked_split(
    split: &mut dyn TokenSplit,
    context: &SplitContext<'_>,
) -> Result<SlotLoads, EvalError> {
    let result = split.split(context)?;
    let (got, expected) = (result.loads.len(), context.table.num_physical_experts());
    if got != expected {
        let what = "the number of slots that a token split loads";
        let expected = format!(
            "{expected}, as the placement has (split `{}`)",
            split.name()
        );
        return Err(EvalError::setting(what, got, expected));
    }
    let (got, expected) = (
        result.loads.iter().sum::<f64>(),
        context.counts.iter().sum::<f64>(),
    );
    let close = (got - expected).abs() <= 1e-6 * expected.max(1.0);
    if !close {
        let what = "the number of tokens that a token split places";
        let expected = format!("{expected}, as the step has (split `{}`)", split.name());
        return Err(EvalError::setting(what, got, expected));
    }
    Ok(result)
}

/// The load of each rank, `[R]`, from that of each slot, `[P]`.
fn per_rank(table: &RoutingTable, loads: &[f64]) -> Vec<f64> {
    let ranks = table.placement().rank_offsets().windows(2);
    ranks
        .map(|w| loads.get(w[0]..w[1]).unwrap_or_default().iter().sum())
        .collect()
}
