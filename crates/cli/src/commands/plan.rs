use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use moekit::eval::{load_file, placement_file};
use moekit::placement::{ExpertLoad, ModelPlacement, PlacementFile, PlacementRequest};
use moekit::routing::Topology;
use serde::{Deserialize, Serialize};

use super::migration_report::MigrationReport;
use super::plan_report::PlanReport;
use crate::charts::{Page, heat_map, rank_loads};
use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{note, print_json, print_line, write_file};
use crate::planning::{BudgetOptions, ReportOptions, ShapeOptions};

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
    /// Observed load: JSON, CSV, .npy, safetensors or an SGLang .pt dump, `[layers, experts]` or
    /// `[steps, layers, experts]`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    shape: ShapeOptions,
    /// The placement in force
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<PathBuf>,
    /// With a placement in force.
    #[command(flatten)]
    #[serde(flatten)]
    migration: BudgetOptions,
    /// Where to write the placement [default: stdout]
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,
    /// Where to write a page with heat maps of the rank loads before and after
    #[arg(long = "report", value_name = "FILE.html")]
    #[serde(rename = "report", skip_serializing_if = "Option::is_none")]
    page: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report {
    #[serde(flatten)]
    plan: PlanReport,
    /// From the placement in force, if there is one, to the plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    migration: Option<MigrationReport>,
    /// Only if it was not written to a file.
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<PlacementFile>,
}

impl Plan {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["load", "current", "out", "report"])?,
            None => self.options,
        };
        let path = options
            .load
            .as_deref()
            .ok_or_else(|| CliError::usage("`--load` is missing: a file with the observed load"))?;
        let observed = load_file::read(path)?;
        let load = observed.total();
        let current = options
            .current
            .as_deref()
            .map(placement_file::read)
            .transpose()?;
        let topology = options.shape.group.topology()?;
        let mut request = options.request(&load, &topology, current.as_ref())?;
        if let Some(trace) = observed.trace() {
            request = request.with_trace(trace)?;
        }

        let strategy = options.shape.group.strategy()?;
        let start = Instant::now();
        let plan = strategy.plan_within_budget(&request)?;
        let seconds = start.elapsed().as_secs_f64();

        let report = PlanReport::of(&*strategy, &plan, &load, current.as_ref(), seconds)?;
        let migration = current
            .as_ref()
            .map(|current| {
                MigrationReport::of(&topology, current, &plan, options.migration.expert_bytes)
            })
            .transpose()?;
        let report = Report {
            plan: report,
            migration,
            placement: None,
        };
        if let Some(path) = &options.page {
            page(path, &report, &plan, &load, current.as_ref())?;
        }
        options.deliver(&plan, report)
    }
}

impl PlanOptions {
    fn request<'a>(
        &self,
        load: &'a ExpertLoad,
        topology: &'a Topology,
        current: Option<&'a ModelPlacement>,
    ) -> Result<PlacementRequest<'a>> {
        let request = self
            .shape
            .request(load.num_layers(), load.num_experts(), topology)?
            .with_load(load)?;
        match (current, self.migration.given()) {
            (Some(current), _) => Ok(request.with_current(current, self.migration.budget()?)?),
            (None, Some(name)) => Err(CliError::usage(format!(
                "`{name}` needs `current`: the placement in force"
            ))),
            (None, None) => Ok(request),
        }
    }

    /// The placement goes to `--out`, else into the JSON report, else to stdout with the report on
    /// stderr.
    fn deliver(&self, plan: &ModelPlacement, mut report: Report) -> Result<()> {
        let file = PlacementFile::from(plan);
        if let Some(path) = &self.out {
            placement_file::write(path, plan)?;
        }
        if self.report.json {
            report.placement = self.out.is_none().then_some(file);
            return print_json(&report);
        }
        let lines = report.lines();
        match &self.out {
            Some(path) => print_line(&format!("{lines}\nwritten to {}", path.display())),
            None => {
                note(&format!("{lines}\n"));
                let text =
                    serde_json::to_string(&file).map_err(|e| CliError::usage(e.to_string()))?;
                print_line(&text)
            }
        }
    }
}

impl Report {
    fn lines(&self) -> String {
        let plan = self.plan.lines();
        match &self.migration {
            Some(migration) => format!("{plan}\n{}", migration.lines()),
            None => plan,
        }
    }
}

/// Heat maps of the rank loads: under the placement in force, if there is one, and under the plan;
/// and what the migration from the one to the other carries.
fn page(
    path: &Path,
    report: &Report,
    plan: &ModelPlacement,
    load: &ExpertLoad,
    current: Option<&ModelPlacement>,
) -> Result<()> {
    let mut page = Page::new(format!("Plan by {}", report.plan.strategy));
    page.text(&report.lines());
    let after = rank_loads(plan, load)?;
    if let Some(current) = current {
        page.chart(&heat_map(
            "Before: load of each rank over the mean, by layer",
            &rank_loads(current, load)?,
        )?);
    }
    page.chart(&heat_map(
        "After: load of each rank over the mean, by layer",
        &after,
    )?);
    if let Some(migration) = &report.migration {
        migration.draw(&mut page)?;
    }
    write_file(path, page.html().as_bytes())
}
