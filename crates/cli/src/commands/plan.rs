use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use moekit::eval::load_file;
use moekit::placement::balance::{LayerBalance, model_balance};
use moekit::placement::{
    ExpertLoad, MigrationBudget, ModelPlacement, PlacementChange, PlacementFile, PlacementRequest,
};
use moekit::routing::Topology;
use serde::{Deserialize, Serialize};

use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line, write_file};
use crate::planning::{GroupOptions, ReportOptions};

/// Arguments of `moekit plan`.
#[derive(Args)]
pub(crate) struct Plan {
    #[command(flatten)]
    options: PlanOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct PlanOptions {
    /// Observed load: JSON, CSV, .npy or safetensors, `[layers, experts]` or `[steps, layers, experts]`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    group: GroupOptions,
    /// Expert groups of group-limited gating
    #[arg(long, value_name = "G")]
    #[serde(skip_serializing_if = "Option::is_none")]
    groups: Option<usize>,
    /// Slots over all ranks, instead of `--redundant`
    #[arg(long, value_name = "S", conflicts_with = "redundant")]
    #[serde(skip_serializing_if = "Option::is_none")]
    slots: Option<usize>,
    /// The placement in force
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<PathBuf>,
    /// Where to write the placement [default: stdout]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report {
    strategy: String,
    num_layers: usize,
    num_logical_experts: usize,
    num_ranks: usize,
    plan_seconds: f64,
    aggregate: Entry,
    layers: Vec<Entry>,
    /// Only if it was not written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<PlacementFile>,
}

/// One layer, or all of them together.
#[derive(Serialize)]
struct Entry {
    #[serde(flatten)]
    balance: LayerBalance,
    num_slots: usize,
    duplicates: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    slots_moved: Option<usize>,
}

impl Plan {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["load", "current", "out"])?,
            None => self.options,
        };
        let path = options
            .load
            .as_deref()
            .ok_or_else(|| CliError::usage("`--load` is missing: a file with the observed load"))?;
        let observed = load_file::read(path)?;
        let load = observed.total();
        let current = options.current.as_deref().map(read_placement).transpose()?;
        let topology = options.group.topology()?;
        let mut request = options.request(&load, &topology, current.as_ref())?;
        if let Some(trace) = observed.trace() {
            request = request.with_trace(trace)?;
        }

        let strategy = options.group.strategy()?;
        let start = Instant::now();
        let plan = strategy.plan(&request)?;
        let plan_seconds = start.elapsed().as_secs_f64();

        let mut report = report(&options, &plan, &load, current.as_ref(), plan_seconds)?;
        options.deliver(&plan, &mut report)
    }
}

impl PlanOptions {
    fn request<'a>(
        &self,
        load: &'a ExpertLoad,
        topology: &'a Topology,
        current: Option<&'a ModelPlacement>,
    ) -> Result<PlacementRequest<'a>> {
        // Flags that exclude each other do so in a file too.
        if let (Some(slots), Some(redundant)) = (self.slots, self.group.redundant) {
            return Err(CliError::usage(format!(
                "`slots` ({slots}) and `redundant` ({redundant}) exclude each other"
            )));
        }
        let mut request = self
            .group
            .request(load.num_layers(), load.num_experts(), topology)?
            .with_load(load)?;
        if let Some(slots) = self.slots {
            request = request.with_num_slots(slots)?;
        }
        if let Some(groups) = self.groups {
            request = request.with_expert_groups(groups)?;
        }
        if let Some(current) = current {
            request = request.with_current(current, MigrationBudget::Unlimited)?;
        }
        Ok(request)
    }

    /// The placement goes to `--out`, else into the JSON report, else to stdout with the report on
    /// stderr.
    fn deliver(&self, plan: &ModelPlacement, report: &mut Report) -> Result<()> {
        let file = PlacementFile::from(plan);
        let text = serde_json::to_string(&file).map_err(|e| CliError::usage(e.to_string()))?;
        match (&self.out, self.report.json) {
            (Some(path), _) => write_file(path, text.as_bytes())?,
            (None, true) => report.placement = Some(file),
            (None, false) => print_line(&text)?,
        }
        if self.report.json {
            return print_json(report);
        }
        let lines = report.lines();
        match &self.out {
            Some(path) => print_line(&format!("{lines}\nwritten to {}", path.display())),
            None => {
                eprintln!("{lines}");
                Ok(())
            }
        }
    }
}

/// Reads a placement file.
pub(crate) fn read_placement(path: &Path) -> Result<ModelPlacement> {
    let text = std::fs::read_to_string(path).map_err(|e| CliError::file(path, e))?;
    let file: PlacementFile = serde_json::from_str(&text).map_err(|e| CliError::file(path, e))?;
    ModelPlacement::try_from(file).map_err(|e| CliError::file(path, e))
}

fn report(
    options: &PlanOptions,
    plan: &ModelPlacement,
    load: &ExpertLoad,
    current: Option<&ModelPlacement>,
    plan_seconds: f64,
) -> Result<Report> {
    let balance = model_balance(plan, load)?;
    let layers: Vec<Entry> = plan
        .layers()
        .iter()
        .zip(balance.layers)
        .enumerate()
        .map(|(l, (placement, balance))| Entry {
            balance,
            num_slots: placement.num_physical_experts(),
            duplicates: placement.duplicates_on_a_rank(),
            slots_moved: current
                .map(|c| PlacementChange::between(&c.layers()[l], placement).slots_received()),
        })
        .collect();
    Ok(Report {
        strategy: options.group.strategy_name().to_owned(),
        num_layers: plan.num_layers(),
        num_logical_experts: plan.num_logical_experts(),
        num_ranks: plan.num_ranks(),
        plan_seconds,
        aggregate: Entry {
            balance: balance.aggregate,
            num_slots: layers.iter().map(|l| l.num_slots).sum(),
            duplicates: layers.iter().map(|l| l.duplicates).sum(),
            slots_moved: layers.iter().map(|l| l.slots_moved).sum(),
        },
        layers,
        placement: None,
    })
}

impl Report {
    fn lines(&self) -> String {
        let mut lines = vec![
            format!(
                "{}: {} layers of {} experts on {} ranks, planned in {:.3} ms",
                self.strategy,
                self.num_layers,
                self.num_logical_experts,
                self.num_ranks,
                self.plan_seconds * 1e3
            ),
            "layer  balancedness    max load   mean load  slots  duplicates  moved".to_owned(),
        ];
        let names = (0..self.layers.len()).map(|l| l.to_string());
        let entries = names
            .zip(&self.layers)
            .chain([("all".to_owned(), &self.aggregate)]);
        for (name, entry) in entries {
            let moved = entry.slots_moved.map_or("-".to_owned(), |m| m.to_string());
            lines.push(format!(
                "{name:>5}  {:>12.4}  {:>10.1}  {:>10.1}  {:>5}  {:>10}  {moved:>5}",
                entry.balance.balancedness,
                entry.balance.max_load,
                entry.balance.mean_load,
                entry.num_slots,
                entry.duplicates
            ));
        }
        lines.join("\n")
    }
}
