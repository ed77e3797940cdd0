use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use moekit::eval::{load_file, placement_file};
use moekit::placement::{
    ExpertLoad, MigrationBudget, ModelPlacement, PlacementRequest, PlacementStrategy,
    linked_strategies,
};
use serde::{Deserialize, Serialize};

use super::plan_report::{HEADER, PlanReport};
use crate::charts::{Page, bars, heat_map, rank_loads};
use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line, write_file};
use crate::planning::{ReportOptions, ShapeOptions};

/// Arguments of `moekit compare`.
#[derive(Args)]
pub(crate) struct Compare {
    #[command(flatten)]
    options: CompareOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct CompareOptions {
    /// Observed load, as for `moekit plan`
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    load: Option<PathBuf>,
    /// Strategies, separated by commas [default: every linked one]; `--set` goes to `--strategy`
    #[arg(long, value_name = "NAMES")]
    #[serde(skip_serializing_if = "Option::is_none")]
    strategies: Option<String>,
    #[command(flatten)]
    #[serde(flatten)]
    shape: ShapeOptions,
    /// The placement in force
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    current: Option<PathBuf>,
    /// Where to write a page with the comparison and heat maps of the rank loads
    #[arg(long = "report", value_name = "FILE.html")]
    #[serde(rename = "report", skip_serializing_if = "Option::is_none")]
    page: Option<PathBuf>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report {
    strategies: Vec<Outcome>,
}

/// What became of one strategy.
#[derive(Serialize)]
#[serde(untagged)]
enum Outcome {
    Plan(Box<PlanReport>),
    /// It cannot answer this request; the others can still be compared.
    Refused {
        strategy: String,
        error: String,
    },
}

impl Compare {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["load", "current", "report"])?,
            None => self.options,
        };
        let path = options
            .load
            .as_deref()
            .ok_or_else(|| CliError::usage("`--load` is missing: a file with the observed load"))?;
        let names = options.names()?;
        let observed = load_file::read(path)?;
        let load = observed.total();
        let current = options
            .current
            .as_deref()
            .map(placement_file::read)
            .transpose()?;
        let topology = options.shape.group.topology()?;
        let mut request = options
            .shape
            .request(load.num_layers(), load.num_experts(), &topology)?
            .with_load(&load)?;
        if let Some(trace) = observed.trace() {
            request = request.with_trace(trace)?;
        }
        if let Some(current) = &current {
            request = request.with_current(current, MigrationBudget::Unlimited)?;
        }

        let (report, plans) = options.plans(names, &request, &load)?;
        report.check()?;
        if let Some(path) = &options.page {
            page(path, &report, &plans, &load)?;
        }
        if options.report.json {
            print_json(&report)
        } else {
            print_line(&report.lines())
        }
    }
}

impl Report {
    /// One plan is enough: what the others lack stands beside it.
    fn check(&self) -> Result<()> {
        let refusals: Option<Vec<&String>> = self
            .strategies
            .iter()
            .map(|outcome| match outcome {
                Outcome::Refused { error, .. } => Some(error),
                Outcome::Plan(_) => None,
            })
            .collect();
        match refusals.as_deref() {
            Some([first, ..]) => Err(CliError::usage(format!(
                "no strategy has a plan; the first refusal is: {first}"
            ))),
            _ => Ok(()),
        }
    }
}

/// A plan, whose it is, and the seconds that it took.
type Planned = (Box<dyn PlacementStrategy>, ModelPlacement, f64);

impl CompareOptions {
    fn names(&self) -> Result<Vec<String>> {
        let registry = linked_strategies()?;
        let names: Vec<String> = match &self.strategies {
            None => registry.iter().map(|d| d.name.to_owned()).collect(),
            Some(list) => list
                .split(',')
                .map(|name| Ok(registry.get(name.trim())?.name.to_owned()))
                .collect::<Result<_>>()?,
        };
        self.shape.group.check_among(&names)?;
        Ok(names)
    }

    /// What became of each strategy, and the plans that a page shows.
    fn plans(
        &self,
        names: Vec<String>,
        request: &PlacementRequest<'_>,
        load: &ExpertLoad,
    ) -> Result<(Report, Vec<(String, ModelPlacement)>)> {
        let mut plans = Vec::new();
        let mut strategies = Vec::new();
        for name in names {
            match self.plan(&name, request) {
                Ok((strategy, plan, seconds)) => {
                    let current = request.current();
                    let report = PlanReport::of(&*strategy, &plan, load, current, seconds)?;
                    strategies.push(Outcome::Plan(Box::new(report)));
                    // Only a page shows the plans; the next one finds memory that is there already.
                    if self.page.is_some() {
                        plans.push((name, plan));
                    }
                }
                Err(error) => strategies.push(Outcome::Refused {
                    strategy: name,
                    error: error.to_string(),
                }),
            }
        }
        Ok((Report { strategies }, plans))
    }

    fn plan(&self, name: &str, request: &PlacementRequest<'_>) -> Result<Planned> {
        let strategy = self.shape.group.strategy_among(name)?;
        let start = Instant::now();
        let plan = strategy.plan(request)?;
        let seconds = start.elapsed().as_secs_f64();
        Ok((strategy, plan, seconds))
    }
}

impl Report {
    fn lines(&self) -> String {
        let mut lines = vec![format!("{:<12}  {HEADER}  plan ms", "strategy")];
        for outcome in &self.strategies {
            lines.push(match outcome {
                Outcome::Plan(plan) => format!(
                    "{:<12}  {}  {:>7.3}",
                    plan.strategy,
                    plan.aggregate.columns(),
                    plan.plan_seconds * 1e3
                ),
                Outcome::Refused { strategy, error } => format!("{strategy:<12}  {error}"),
            });
        }
        lines.join("\n")
    }
}

fn page(
    path: &Path,
    report: &Report,
    plans: &[(String, ModelPlacement)],
    load: &ExpertLoad,
) -> Result<()> {
    let mut page = Page::new("Placement strategies compared".to_owned());
    page.text(&report.lines());
    let values: Vec<(String, f64)> = report
        .strategies
        .iter()
        .filter_map(|outcome| match outcome {
            Outcome::Plan(plan) => {
                Some((plan.strategy.clone(), plan.aggregate.balance.balancedness))
            }
            Outcome::Refused { .. } => None,
        })
        .collect();
    page.chart(&bars("Balancedness of all layers", &values)?);
    for (name, plan) in plans {
        let title = format!("{name}: load of each rank over the mean, by layer");
        page.chart(&heat_map(&title, &rank_loads(plan, load)?)?);
    }
    write_file(path, page.html().as_bytes())
}
