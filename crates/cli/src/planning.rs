//! What the commands that place experts share: the flags, and the request that they make.

use clap::Args;
use moekit::placement::{
    MigrationBudget, PlacementRequest, PlacementStrategy, Topology, strategy_from_value,
};
use moekit::quant::MoeLayerSpec;
use serde::{Deserialize, Serialize};

use crate::config::{Setting, parse_setting, settings, strategy_config};
use crate::error::{CliError, Result};

/// The most tokens of a batch.
pub(crate) const MOST_TOKENS: usize = 1 << 20;

/// The most ranks that a command runs: each is a thread or a process.
pub(crate) const MOST_RANKS: usize = 1 << 10;

/// The EP group and the strategy.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct GroupOptions {
    /// Ranks of the EP group [default: 1]
    #[arg(long, value_name = "R")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ranks: Option<usize>,
    /// Nodes that the ranks sit on [default: 1]
    #[arg(long, value_name = "N")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) nodes: Option<usize>,
    /// Placement strategy, see `moekit strategies list` [default: linear]
    #[arg(long, value_name = "NAME")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) strategy: Option<String>,
    /// A setting of the strategy, or TABLE.KEY=VALUE for one in a table; repeat for more
    #[arg(long = "set", value_name = "KEY=VALUE", value_parser = parse_setting)]
    #[serde(with = "settings", skip_serializing_if = "Vec::is_empty")]
    pub(crate) set: Vec<Setting>,
    /// Slots beyond one per logical expert, over all ranks
    #[arg(long, value_name = "K")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) redundant: Option<usize>,
}

impl GroupOptions {
    pub(crate) fn topology(&self) -> Result<Topology> {
        Ok(Topology::new(self.ranks.unwrap_or(1))?.with_nodes(self.nodes.unwrap_or(1))?)
    }

    pub(crate) fn strategy_name(&self) -> &str {
        self.strategy.as_deref().unwrap_or("linear")
    }

    pub(crate) fn strategy(&self) -> Result<Box<dyn PlacementStrategy>> {
        Ok(strategy_from_value(strategy_config(
            self.strategy_name(),
            &self.set,
        ))?)
    }

    /// Where several strategies are asked for, `--strategy`, to which the settings go, is one of them.
    pub(crate) fn check_among(&self, names: &[String]) -> Result<()> {
        let all = names.join(", ");
        match &self.strategy {
            Some(own) if !names.contains(own) => Err(CliError::usage(format!(
                "settings go to `--strategy`, and `{own}` is not among those asked for: {all}"
            ))),
            None if !self.set.is_empty() && names != [self.strategy_name()] => {
                Err(CliError::usage(format!(
                    "`--set` needs `--strategy`: for which of {all} it is"
                )))
            }
            _ => Ok(()),
        }
    }

    /// One of several strategies, with the settings if it is `--strategy`.
    pub(crate) fn strategy_among(&self, name: &str) -> Result<Box<dyn PlacementStrategy>> {
        let set = match name == self.strategy_name() {
            true => &self.set[..],
            false => &[],
        };
        Ok(strategy_from_value(strategy_config(name, set))?)
    }

    /// A request for `layers` layers of `experts` experts.
    pub(crate) fn request<'a>(
        &self,
        layers: usize,
        experts: usize,
        topology: &'a Topology,
    ) -> Result<PlacementRequest<'a>> {
        let request = PlacementRequest::new(layers, experts, topology)?;
        Ok(match self.redundant {
            Some(redundant) => request.with_redundant_experts(redundant)?,
            None => request,
        })
    }

    /// A request for the MoE layers of a model, without a load.
    pub(crate) fn request_for<'a>(
        &self,
        layers: &[MoeLayerSpec],
        topology: &'a Topology,
    ) -> Result<PlacementRequest<'a>> {
        let first = layers
            .first()
            .ok_or_else(|| CliError::usage("the checkpoint has no MoE layers"))?;
        check_equal_size(layers, first)?;
        let request = self.request(layers.len(), first.num_experts, topology)?;
        Ok(match first.router.groups {
            Some(groups) => request.with_expert_groups(groups.num_groups)?,
            None => request,
        })
    }
}

/// Whether all layers have as many experts as the first: one plan places layers of equal size.
fn check_equal_size(layers: &[MoeLayerSpec], first: &MoeLayerSpec) -> Result<()> {
    match layers.iter().find(|l| l.num_experts != first.num_experts) {
        Some(other) => Err(CliError::usage(format!(
            "layer {} has {} experts and layer {} has {}: one plan places layers of equal size",
            first.layer, first.num_experts, other.layer, other.num_experts
        ))),
        None => Ok(()),
    }
}

/// What to plan for: a load, and the slots that take it.
#[derive(Args, Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ShapeOptions {
    #[command(flatten)]
    #[serde(flatten)]
    pub(crate) group: GroupOptions,
    /// Expert groups of group-limited gating
    #[arg(long, value_name = "G")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) groups: Option<usize>,
    /// Slots over all ranks, instead of `--redundant`
    #[arg(long, value_name = "S", conflicts_with = "redundant")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) slots: Option<usize>,
}

impl ShapeOptions {
    /// A request for `layers` layers of `experts` experts, without a load.
    pub(crate) fn request<'a>(
        &self,
        layers: usize,
        experts: usize,
        topology: &'a Topology,
    ) -> Result<PlacementRequest<'a>> {
        // Flags that exclude each other do so in a file too.
        if let (Some(slots), Some(redundant)) = (self.slots, self.group.redundant) {
            return Err(CliError::usage(format!(
                "`slots` ({slots}) and `redundant` ({redundant}) exclude each other"
            )));
        }
        let mut request = self.group.request(layers, experts, topology)?;
        if let Some(slots) = self.slots {
            request = request.with_num_slots(slots)?;
        }
        if let Some(groups) = self.groups {
            request = request.with_expert_groups(groups)?;
        }
        Ok(request)
    }
}

/// What a migration may cost.
#[derive(Args, Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct BudgetOptions {
    /// How many slots a plan may fill with an expert new to their rank, over all layers; the plan of
    /// a strategy that does not keep to it is cut to the part that gains most
    #[arg(long, value_name = "SLOTS", conflicts_with = "budget_bytes")]
    #[serde(rename = "budget-slots", skip_serializing_if = "Option::is_none")]
    pub(crate) budget_slots: Option<usize>,
    /// The same in bytes; needs `--expert-bytes`
    #[arg(long, value_name = "BYTES")]
    #[serde(rename = "budget-bytes", skip_serializing_if = "Option::is_none")]
    pub(crate) budget_bytes: Option<u64>,
    /// Bytes of one expert, for the bytes that travel
    #[arg(long, value_name = "BYTES")]
    #[serde(rename = "expert-bytes", skip_serializing_if = "Option::is_none")]
    pub(crate) expert_bytes: Option<u64>,
}

impl BudgetOptions {
    pub(crate) fn budget(&self) -> Result<MigrationBudget> {
        match (self.budget_slots, self.budget_bytes, self.expert_bytes) {
            // Flags that exclude each other do so in a file too.
            (Some(slots), Some(bytes), _) => Err(CliError::usage(format!(
                "`budget-slots` ({slots}) and `budget-bytes` ({bytes}) exclude each other"
            ))),
            (_, Some(bytes), None) => Err(CliError::usage(format!(
                "`budget-bytes` ({bytes}) needs `expert-bytes`: what one expert takes of it"
            ))),
            (_, _, Some(0)) => Err(CliError::usage(
                "`expert-bytes` is 0; an expert has at least 1 byte",
            )),
            (_, Some(budget), Some(per_expert)) => {
                Ok(MigrationBudget::Bytes { budget, per_expert })
            }
            (Some(slots), None, _) => Ok(MigrationBudget::Slots(slots)),
            (None, None, _) => Ok(MigrationBudget::Unlimited),
        }
    }

    /// The first of these flags that was given.
    pub(crate) fn given(&self) -> Option<&'static str> {
        [
            ("budget-slots", self.budget_slots.is_some()),
            ("budget-bytes", self.budget_bytes.is_some()),
            ("expert-bytes", self.expert_bytes.is_some()),
        ]
        .into_iter()
        .find_map(|(name, given)| given.then_some(name))
    }
}

/// How a command reports.
#[derive(Args, Clone, Copy, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ReportOptions {
    /// Print one JSON document on stdout, and nothing else
    #[arg(long)]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub(crate) json: bool,
}
