use std::path::PathBuf;

use clap::Args;
use moekit::placement::Topology;
use moekit::routing::{LogicalExpert, PhysicalExpert, Rank, RoutingTable};
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
            Some(file) => merge(&self.options, file, &[])?,
            None => self.options,
        };
        let experts = options.experts.ok_or_else(|| {
            CliError::usage("`--experts` is missing: the number of logical experts")
        })?;
        let topology = options.group.topology()?;
        let table = table(&options, experts, topology)?;
        let report = Report::of(&table);
        if options.report.json {
            print_json(&report)
        } else {
            report.print(&table)
        }
    }
}

fn table(options: &MapOptions, experts: usize, topology: Topology) -> Result<RoutingTable> {
    let request = options.group.request(1, experts, &topology)?;
    let plan = options.group.strategy()?.plan(&request)?;
    let placement = plan.layers()[0].clone();
    Ok(RoutingTable::new(
        placement,
        topology,
        options.shared.unwrap_or(0),
        0,
    )?)
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
