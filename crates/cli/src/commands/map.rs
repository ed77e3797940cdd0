use std::path::{Path, PathBuf};

use clap::Args;
use moekit::eval::placement_file;
use moekit::placement::Topology;
use moekit::routing::{LogicalExpert, PhysicalExpert, Placement, Rank, RoutingTable};
use serde::{Deserialize, Serialize};

use crate::config::merge;
use crate::error::{CliError, Result};
use crate::output::{print_json, print_line};
use crate::planning::{GroupOptions, ReportOptions};

/// Arguments of `moekit map`.
#[derive(Args)]
pub(crate) struct Map {
    #[command(flatten)]
    options: MapOptions,
    /// A TOML file with any of these flags; flags win
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct MapOptions {
    /// Logical experts of the layer
    #[arg(long, value_name = "G")]
    #[serde(skip_serializing_if = "Option::is_none")]
    experts: Option<usize>,
    /// Shared experts fused as extra local slots [default: 0]
    #[arg(long, value_name = "S")]
    #[serde(skip_serializing_if = "Option::is_none")]
    shared: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    group: GroupOptions,
    /// A placement as `moekit plan --out` writes it, in place of `--experts`, `--ranks` and a strategy
    #[arg(long, value_name = "FILE")]
    #[serde(skip_serializing_if = "Option::is_none")]
    placement: Option<PathBuf>,
    /// The layer of `--placement` to look at [default: 0]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<usize>,
    #[command(flatten)]
    #[serde(flatten)]
    report: ReportOptions,
}

#[derive(Serialize)]
struct Report {
    ranks: Vec<RankReport>,
    global_to_physical: Vec<PhysicalExpert>,
    physical_to_global: Vec<LogicalExpert>,
    replica_counts: Vec<usize>,
}

#[derive(Serialize)]
struct RankReport {
    rank: Rank,
    num_local_experts: usize,
    expert_map: Vec<i32>,
    expert_mask: Vec<i32>,
    local_to_global: Vec<LogicalExpert>,
}

impl Map {
    pub(crate) fn run(self) -> Result<()> {
        let options = match &self.config {
            Some(file) => merge(&self.options, file, &["placement"])?,
            None => self.options,
        };
        let table = match &options.placement {
            Some(file) => options.given(file)?,
            None => options.planned()?,
        };
        let report = Report::of(&table);
        if options.report.json {
            print_json(&report)
        } else {
            report.print(&table)
        }
    }
}

impl MapOptions {
    /// The table of what the strategy places.
    fn planned(&self) -> Result<RoutingTable> {
        if let Some(layer) = self.layer {
            return Err(CliError::usage(format!(
                "`--layer {layer}` is one of `--placement`, which is not given"
            )));
        }
        let experts = self.experts.ok_or_else(|| {
            CliError::usage("`--experts` is missing: the number of logical experts")
        })?;
        let topology = self.group.topology()?;
        let request = self.group.request(1, experts, &topology)?;
        let plan = self.group.strategy()?.plan(&request)?;
        self.table(plan.layers()[0].clone(), topology)
    }

    /// The table of one layer of a placement.
    fn given(&self, file: &Path) -> Result<RoutingTable> {
        if let Some(flag) = self.decided_by_placement() {
            return Err(CliError::usage(format!(
                "`--{flag}` and `--placement` exclude each other: the placement says it"
            )));
        }
        let placement = placement_file::read(file)?;
        let (layer, num_layers) = (self.layer.unwrap_or(0), placement.num_layers());
        let one = placement.layers().get(layer).ok_or_else(|| {
            CliError::usage(format!(
                "`--layer {layer}` is none of the {num_layers} of {}, counted from 0",
                file.display()
            ))
        })?;
        let topology = GroupOptions {
            ranks: Some(placement.num_ranks()),
            ..self.group.clone()
        }
        .topology()?;
        self.table(one.clone(), topology)
    }

    fn decided_by_placement(&self) -> Option<&'static str> {
        [
            ("experts", self.experts.is_some()),
            ("ranks", self.group.ranks.is_some()),
            ("strategy", self.group.strategy.is_some()),
            ("set", !self.group.set.is_empty()),
            ("redundant", self.group.redundant.is_some()),
        ]
        .into_iter()
        .find_map(|(flag, given)| given.then_some(flag))
    }

    fn table(&self, placement: Placement, topology: Topology) -> Result<RoutingTable> {
        let shared = self.shared.unwrap_or(0);
        Ok(RoutingTable::new(placement, topology, shared, 0)?)
    }
}

impl Report {
    fn of(table: &RoutingTable) -> Self {
        let ranks = (0..table.num_ranks())
            .map(Rank::new)
            .filter_map(|rank| {
                let tables = table.rank(rank)?;
                Some(RankReport {
                    rank,
                    num_local_experts: tables.local_to_global.len(),
                    expert_map: tables.expert_map.clone(),
                    expert_mask: tables.expert_mask.clone(),
                    local_to_global: tables.local_to_global.clone(),
                })
            })
            .collect();
        Self {
            ranks,
            global_to_physical: table.global_to_physical(),
            physical_to_global: table.physical_to_global(),
            replica_counts: table.replica_counts(),
        }
    }

    fn print(&self, table: &RoutingTable) -> Result<()> {
        print_line(&format!(
            "{} logical experts in {} slots on {} ranks, {} shared",
            table.num_logical_experts(),
            table.num_physical_experts(),
            table.num_ranks(),
            table.num_shared_experts()
        ))?;
        for rank in &self.ranks {
            print_line(&format!(
                "rank {}: {} local experts",
                rank.rank, rank.num_local_experts
            ))?;
            print_line(&format!(
                "  local_to_global    {}",
                list(&rank.local_to_global)
            ))?;
            print_line(&format!("  expert_map         {}", list(&rank.expert_map)))?;
            print_line(&format!("  expert_mask        {}", list(&rank.expert_mask)))?;
        }
        print_line(&format!(
            "global_to_physical   {}",
            list(&self.global_to_physical)
        ))?;
        print_line(&format!(
            "physical_to_global   {}",
            list(&self.physical_to_global)
        ))?;
        print_line(&format!(
            "replica_counts       {}",
            list(&self.replica_counts)
        ))
    }
}

fn list<T: std::fmt::Display>(items: &[T]) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(" ")
}
