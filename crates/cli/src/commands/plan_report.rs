//! How good a plan is: what `plan` and `compare` tell.

use moekit::placement::balance::{LayerBalance, ModelBalance, model_balance_at_speeds};
use moekit::placement::bound::load_bound_at_speeds;
use moekit::placement::{ExpertLoad, ModelPlacement, PlacementChange, PlacementStrategy};
use serde::Serialize;

use crate::error::Result;

/// A plan of all layers.
#[derive(Serialize)]
pub(super) struct PlanReport {
    pub(super) strategy: String,
    /// Loads of ranks are weighed by their speed, if the strategy plans for several.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    speeds: Vec<f64>,
    pub(super) num_layers: usize,
    pub(super) num_logical_experts: usize,
    pub(super) num_ranks: usize,
    pub(super) plan_seconds: f64,
    pub(super) aggregate: Entry,
    pub(super) layers: Vec<Entry>,
}

/// One layer, or all of them together.
#[derive(Serialize)]
pub(super) struct Entry {
    #[serde(flatten)]
    pub(super) balance: LayerBalance,
    /// No placement in these slots has a better balancedness.
    pub(super) balancedness_bound: f64,
    pub(super) num_slots: usize,
    /// Slots that repeat an expert of their own rank.
    pub(super) duplicates: usize,
    /// Experts that travel to a rank which did not hold them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) slots_moved: Option<usize>,
}

impl PlanReport {
    pub(super) fn of(
        strategy: &dyn PlacementStrategy,
        plan: &ModelPlacement,
        load: &ExpertLoad,
        current: Option<&ModelPlacement>,
        plan_seconds: f64,
    ) -> Result<Self> {
        let ModelBalance {
            aggregate,
            layers: balances,
            ..
        } = model_balance_at_speeds(plan, load, strategy.speeds())?;
        let mut layers = Vec::with_capacity(balances.len());
        let mut bound_max = 0.0;
        for (l, ((placement, balance), load)) in plan
            .layers()
            .iter()
            .zip(balances)
            .zip(load.layers())
            .enumerate()
        {
            let bound = load_bound_at_speeds(load, &placement.slots_per_rank(), strategy.speeds())?;
            bound_max += bound.max_load;
            layers.push(Entry {
                balance,
                balancedness_bound: bound.balancedness.min(1.0),
                num_slots: placement.num_physical_experts(),
                duplicates: placement.duplicates_on_a_rank(),
                slots_moved: current
                    .and_then(|c| c.layers().get(l))
                    .map(|c| PlacementChange::between(c, placement).slots_received()),
            });
        }
        Ok(Self {
            strategy: strategy.name().to_owned(),
            speeds: strategy.speeds().to_vec(),
            num_layers: plan.num_layers(),
            num_logical_experts: plan.num_logical_experts(),
            num_ranks: plan.num_ranks(),
            plan_seconds,
            aggregate: Entry {
                balance: aggregate,
                balancedness_bound: if bound_max > 0.0 {
                    (aggregate.mean_load / bound_max).min(1.0)
                } else {
                    1.0
                },
                num_slots: layers.iter().map(|l| l.num_slots).sum(),
                duplicates: layers.iter().map(|l| l.duplicates).sum(),
                slots_moved: layers.iter().map(|l| l.slots_moved).sum(),
            },
            layers,
        })
    }

    pub(super) fn lines(&self) -> String {
        let mut lines = vec![
            format!(
                "{}: {} layers of {} experts on {} ranks, planned in {:.3} ms",
                self.strategy,
                self.num_layers,
                self.num_logical_experts,
                self.num_ranks,
                self.plan_seconds * 1e3
            ),
            format!("layer  {HEADER}"),
        ];
        if !self.speeds.is_empty() {
            lines.insert(1, format!("loads over relative speeds {:?}", self.speeds));
        }
        for (l, entry) in self.layers.iter().enumerate() {
            lines.push(format!("{l:>5}  {}", entry.columns()));
        }
        lines.push(format!("{:>5}  {}", "all", self.aggregate.columns()));
        lines.join("\n")
    }
}

/// The columns of [`Entry::columns`].
pub(super) const HEADER: &str =
    "balancedness   bound    max load   mean load  slots  duplicates  moved";

impl Entry {
    pub(super) fn columns(&self) -> String {
        format!(
            "{:>12.4}  {:>6.4}  {:>10.1}  {:>10.1}  {:>5}  {:>10}  {:>5}",
            self.balance.balancedness,
            self.balancedness_bound,
            self.balance.max_load,
            self.balance.mean_load,
            self.num_slots,
            self.duplicates,
            self.slots_moved
                .map_or("-".to_owned(), |moved| moved.to_string())
        )
    }
}
