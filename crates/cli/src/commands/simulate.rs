use std::path::{Path, PathBuf};

use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use moekit::eval::load_file::{self, LoadFile};
use moekit::eval::simulate::{
    Certificate, EqualSplit, SelectorSplit, Simulated, Simulation, SimulationReport, TokenSplit,
    WaterfillSplit,
};
use moekit::placement::balance::LayerBalance;
use moekit::placement::bound::{load_bound_at_speeds, optimal_split};
use moekit::placement::{LoadTrace, PlacementChange, PlacementStrategy};
use moekit::routing::{ReplicaSelector, RoutingTable};
use serde::{Deserialize, Serialize};

use crate::charts::{Page, bars, heat_map, lines};
use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line, write_file};
use crate::planning::{BudgetOptions, ReportOptions, ShapeOptions};

/// Arguments of `moekit simulate`.
#[derive(Args)]
pub(crate) struct Simulate {
    #[command(flatten)]
    options: SimulateOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct SimulateOptions {
    /// Token counts `[steps, layers, experts]`, as `moekit generate` writes them
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    trace: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    shape: ShapeOptions,
    /// More strategies to simulate, separated by commas; `--set` goes to `--strategy`
    #[arg(long, value_name = "NAMES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    strategies: Option<String>,
    /// How tokens fall on replicas, one or more separated by commas: equal, hash, waterfill,
    /// waterfill-previous, or another replica selector (round_robin, local_first)
    /// [default: equal]
    #[arg(long, value_name = "NAMES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    selector: Option<String>,
    /// Steps that a plan looks back on [default: 32]
    #[arg(long, value_name = "STEPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<usize>,
    /// Steps from one plan to the next [default: 32]
    #[arg(long, value_name = "STEPS")]
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<usize>,
    /// Of each re-plan.
    #[command(flatten)]
    #[serde(flatten)]
    migration: BudgetOptions,
    /// Where to write rank loads and placements; with one strategy and selector
    #[arg(long, value_name = "FILE.safetensors")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dump: Option<PathBuf>,
    /// Where to write a page with charts
    #[arg(long = "report", value_name = "FILE.html")]
    #[serde(rename = "report", skip_serializing_if = "Option::is_none")]
    page: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report<'a> {
    /// The fields of a single simulation stand at the top too.
    #[serde(flatten)]
    single: Option<&'a SimulationReport>,
    simulations: Vec<&'a SimulationReport>,
}

/// The bounds of the placement crate.
#[derive(Debug)]
struct Bounds;

impl Certificate for Bounds {
    fn balance_bound(&self, load: &[f64], slots: &[usize], speeds: &[f64]) -> Option<f64> {
        load_bound_at_speeds(load, slots, speeds)
            .ok()
            .map(|bound| bound.balancedness)
    }

    fn smallest_maximum(&self, table: &RoutingTable, counts: &[f64]) -> Option<f64> {
        // Loads that are not whole tokens have no optimum in whole tokens.
        let whole =
            |&count: &f64| (count.fract() == 0.0 && count < 2f64.powi(53)).then_some(count as u64);
        let counts: Vec<u64> = counts.iter().map(whole).collect::<Option<_>>()?;
        optimal_split(table.placement(), &counts)
            .ok()
            .map(|optimum| optimum.level())
    }
}

impl Simulate {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["trace", "dump", "report"])?,
            None => self.options,
        };
        options.check_dump()?;
        // A name that is not known is one before anything else is done.
        let strategies = options.make_strategies()?;
        let selectors = options.selectors();
        for selector in &selectors {
            split(selector)?;
        }
        let trace = options.trace()?;
        let topology = options.shape.group.topology()?;
        let shape = options
            .shape
            .request(trace.num_layers(), trace.num_experts(), &topology)?;
        let (window, interval) = (options.window.unwrap_or(32), options.interval.unwrap_or(32));
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} intervals {msg}") {
            bar.set_style(style);
        }
        let progress = |done: usize, all: usize| {
            bar.set_length(all as u64);
            bar.set_position(done as u64);
        };
        let mut simulation = Simulation::new(&trace, shape, window, interval)?
            .with_certificate(&Bounds)
            .with_budget(options.migration.budget()?)
            .with_progress(&progress);
        if let Some(bytes) = options.migration.expert_bytes {
            simulation = simulation.with_expert_bytes(bytes);
        }

        let mut results = Vec::new();
        for strategy in strategies {
            for selector in &selectors {
                bar.set_message(format!("{}, {selector}", strategy.name()));
                results.push(simulation.run(strategy.as_ref(), split(selector)?.as_mut())?);
            }
        }
        bar.finish_and_clear();
        options.deliver(&trace, &results)
    }
}

/// A split by its name.
fn split(name: &str) -> Result<Box<dyn TokenSplit>> {
    let selector = match name.replace('-', "_").as_str() {
        "equal" => return Ok(Box::new(EqualSplit)),
        "waterfill" => return Ok(Box::new(WaterfillSplit::this_step(name))),
        "waterfill_previous" => return Ok(Box::new(WaterfillSplit::previous_step(name))),
        "hash" => ReplicaSelector::from_name("row_hash")?,
        other => ReplicaSelector::from_name(other).map_err(|_| {
            CliError::usage(format!(
                "unknown selector `{name}`; known are equal, hash, {}",
                ReplicaSelector::NAMES.join(", ")
            ))
        })?,
    };
    Ok(Box::new(SelectorSplit::new(name, selector, 1, 0)))
}

impl SimulateOptions {
    fn trace(&self) -> Result<LoadTrace> {
        let path = self.trace.as_deref().ok_or_else(|| {
            CliError::usage("`--trace` is missing: token counts, see `moekit generate`")
        })?;
        match load_file::read(path)? {
            LoadFile::Trace(trace) => Ok(trace),
            other => Err(CliError::file(
                path,
                format!(
                    "a load of shape {:?} has no steps to simulate, expected [steps, layers, experts]",
                    other.shape()
                ),
            )),
        }
    }

    fn strategies(&self) -> Vec<String> {
        let more = self.strategies.as_deref().map(names).unwrap_or_default();
        let mut all = Vec::new();
        if self.shape.group.strategy.is_some() || more.is_empty() {
            all.push(self.shape.group.strategy_name().to_owned());
        }
        all.extend(more);
        all
    }

    fn make_strategies(&self) -> Result<Vec<Box<dyn PlacementStrategy>>> {
        let (group, names) = (&self.shape.group, self.strategies());
        group.check_among(&names)?;
        names
            .iter()
            .map(|name| group.strategy_among(name))
            .collect()
    }

    fn selectors(&self) -> Vec<String> {
        names(self.selector.as_deref().unwrap_or("equal"))
    }

    /// A dump holds one simulation.
    fn check_dump(&self) -> Result<()> {
        match self.strategies().len() * self.selectors().len() {
            count @ 2.. if self.dump.is_some() => Err(CliError::usage(format!(
                "`--dump` writes one simulation, but {count} were asked for"
            ))),
            _ => Ok(()),
        }
    }

    fn deliver(&self, trace: &LoadTrace, results: &[Simulated]) -> Result<()> {
        let single = match results {
            [single] => Some(single),
            _ => None,
        };
        if let Some(path) = &self.dump {
            for simulated in results {
                simulated.dump(path)?;
            }
        }
        if let Some(path) = &self.page {
            page(path, trace, results)?;
        }
        if self.report.json {
            return print_json(&Report {
                single: single.map(|s| &s.report),
                simulations: results.iter().map(|s| &s.report).collect(),
            });
        }
        print_line(&table(results))
    }
}

fn names(list: &str) -> Vec<String> {
    list.split(',').map(|name| name.trim().to_owned()).collect()
}

fn table(results: &[Simulated]) -> String {
    let mut lines = vec![format!(
        "{:<12} {:<18} {:>6} {:>6} {:>6} {:>6} {:>6} {:>7} {:>8} {:>6} {:>8} {:>9} {:>9}",
        "strategy",
        "selector",
        "plan",
        "next",
        "step",
        "p1",
        "bound",
        "gap",
        "moved",
        "rounds",
        "off node",
        "plan ms",
        "split us"
    )];
    for Simulated { report: r, .. } in results {
        lines.push(format!(
            "{:<12} {:<18} {:>6.4} {:>6.4} {:>6.4} {:>6.4} {:>6} {:>7} {:>7.2}% {:>6.1} {:>7.2}% {:>9.3} {:>9.2}",
            r.strategy,
            r.selector,
            r.balance_plan,
            r.balance_next,
            r.balance_step_mean,
            r.balance_step_p1,
            r.bound.map_or("-".to_owned(), |bound| format!("{bound:.4}")),
            r.certificate_gap_mean
                .map_or("-".to_owned(), |gap| format!("{:.2}%", 100.0 * gap)),
            r.slots_moved_fraction * 100.0,
            r.migration_rounds_mean,
            r.off_node_fraction * 100.0,
            r.plan_seconds_per_interval * 1e3,
            r.split_micros_per_layer
        ));
    }
    lines.join("\n")
}

/// Balance over steps, mean rank loads, and what each rank receives.
fn page(path: &Path, trace: &LoadTrace, results: &[Simulated]) -> Result<()> {
    let mut page = Page::new("Simulation".to_owned());
    page.text(&table(results));
    let layers = trace.num_layers();
    let named: Vec<(String, &Simulated, usize)> = results
        .iter()
        .map(|s| {
            let ranks = s.placements.first().map_or(1, |p| p.num_ranks());
            (
                format!("{}, {}", s.report.strategy, s.report.selector),
                s,
                ranks,
            )
        })
        .collect();
    let balance: Vec<(String, Vec<f64>)> = named
        .iter()
        .map(|(name, s, ranks)| (name.clone(), step_balance(&s.rank_load, layers, *ranks)))
        .collect();
    page.chart(&lines(
        "Balance of each step, mean over layers",
        "step",
        &balance,
    )?);
    for (name, simulated, ranks) in &named {
        let title = format!("{name}: load of each rank over the mean, by layer, all steps");
        page.chart(&heat_map(
            &title,
            &total_loads(&simulated.rank_load, layers, *ranks),
        )?);
    }
    // Plans do not depend on the selector.
    let mut drawn: Vec<&str> = Vec::new();
    for (_, simulated, ranks) in &named {
        let strategy = simulated.report.strategy.as_str();
        if !drawn.contains(&strategy) {
            drawn.push(strategy);
            let title = format!("{strategy}: experts received per rank, all re-plans");
            page.chart(&bars(&title, &received_per_rank(simulated, *ranks))?);
        }
    }
    write_file(path, page.html().as_bytes())
}

fn step_balance(rank_load: &[f64], layers: usize, ranks: usize) -> Vec<f64> {
    rank_load
        .chunks(layers * ranks)
        .map(|step| {
            let balances = step
                .chunks(ranks)
                .map(|layer| LayerBalance::of(layer).balancedness);
            balances.sum::<f64>() / layers as f64
        })
        .collect()
}

/// `[layers][ranks]`, summed over steps.
fn total_loads(rank_load: &[f64], layers: usize, ranks: usize) -> Vec<Vec<f64>> {
    let mut total = vec![vec![0.0; ranks]; layers];
    for step in rank_load.chunks(layers * ranks) {
        for (sum, layer) in total.iter_mut().zip(step.chunks(ranks)) {
            sum.iter_mut()
                .zip(layer)
                .for_each(|(sum, load)| *sum += load);
        }
    }
    total
}

fn received_per_rank(simulated: &Simulated, ranks: usize) -> Vec<(String, f64)> {
    let mut received = vec![0.0; ranks];
    for pair in simulated.placements.windows(2) {
        for (old, new) in pair[0].layers().iter().zip(pair[1].layers()) {
            for change in PlacementChange::between(old, new).ranks {
                if let Some(count) = received.get_mut(change.rank.index()) {
                    *count += change.gained.len() as f64;
                }
            }
        }
    }
    received
        .into_iter()
        .enumerate()
        .map(|(rank, count)| (rank.to_string(), count))
        .collect()
}
