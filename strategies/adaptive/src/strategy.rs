//! The strategy: layer by layer, and over all layers where a budget is shared.

use std::borrow::Cow;

use moekit_placement::{
    Capabilities, MigrationBudget, ModelPlacement, Placement, PlacementError, PlacementRequest,
    PlacementStrategy, typetag,
};

use crate::apportion::apportion;
use crate::baseline::Hierarchy;
use crate::budget;
use crate::layout::Layout;
use crate::plan::{Effort, Layer, exchange, single_precision};
use crate::ranks::Ranks;
use crate::replan::{Goal, Stop, way};
use crate::settings::{Adaptive, Recovery};
use crate::surplus;
use crate::swap::Work;
use crate::weights::weights;

#[typetag::serde(name = "adaptive")]
impl PlacementStrategy for Adaptive {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        self.check(request.topology().num_ranks())?;
        let all = Ranks::new(request.slots_per_rank(), request.topology(), &self.speeds);
        let used = Ranks::without_surplus(request, &self.speeds);
        let weights: Vec<Cow<'_, [f64]>> = (0..request.num_layers())
            .map(|layer| weights(request, layer, self.risk))
            .collect();
        let layers = match request.current() {
            Some(current) => self.replan(request, current, &used, &weights)?,
            None => weights
                .iter()
                .map(|w| self.plan(request, &used, w).into_slots())
                .collect(),
        };
        let layers = layers.into_iter().zip(&weights).map(|(slots, weights)| {
            let slots = surplus::fill(&used, slots, &all, weights);
            let slots = slots.into_iter().map(|e| e as usize).collect();
            Ok(Placement::new(
                request.num_logical_experts(),
                slots,
                all.offsets().to_vec(),
            )?)
        });
        ModelPlacement::new(layers.collect::<Result<_, PlacementError>>()?)
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.uses_load = true;
        capabilities.uses_current = true;
        capabilities.uses_nodes = true;
        capabilities.keeps_budget = true;
        capabilities
    }
}

impl Adaptive {
    fn effort(&self) -> Effort {
        Effort {
            tolerance: self.tolerance,
            node_tolerance: self.node_tolerance,
            work: self.work,
            patience: self.patience,
            connect: self.connect,
        }
    }

    /// A layer from nothing.
    fn plan<'a>(
        &self,
        request: &PlacementRequest<'_>,
        ranks: &'a Ranks,
        weights: &'a [f64],
    ) -> Layout<'a> {
        let layer = Layer {
            ranks,
            weights,
            num_groups: request.num_expert_groups(),
            baseline: baseline(request, ranks),
        };
        layer.plan(&self.effort())
    }

    /// All layers from the placement in force.
    fn replan(
        &self,
        request: &PlacementRequest<'_>,
        current: &ModelPlacement,
        ranks: &Ranks,
        weights: &[Cow<'_, [f64]>],
    ) -> Result<Vec<Vec<u32>>, PlacementError> {
        let budget = match request.budget() {
            MigrationBudget::Unlimited => None,
            MigrationBudget::Slots(slots) => Some(slots),
            other => {
                return Err(PlacementError::precondition(
                    crate::settings::NAME,
                    format!("budget {other:?} is unknown"),
                ));
            }
        };
        let ways: Vec<Vec<Stop>> = weights
            .iter()
            .zip(current.layers())
            .map(|(weights, current)| {
                let goal = self.goal(ranks, weights);
                let mut way = way(ranks, weights, current, goal);
                if budget.is_none() && !goal.only_recover {
                    self.search_on(ranks, weights, goal, &mut way);
                }
                way
            })
            .collect();
        let Some(stops) = budget::choose(&ways, budget, self.replan.min_gain) else {
            return Err(PlacementError::BudgetTooSmall {
                what: "slots",
                budget: budget.unwrap_or_default() as u64,
                needed: ways.iter().map(|way| way[0].moved as u64).sum(),
            });
        };
        let chosen = ways.into_iter().zip(stops);
        Ok(chosen
            .map(|(mut way, stop)| way.swap_remove(stop).slots)
            .collect())
    }

    fn goal(&self, ranks: &Ranks, weights: &[f64]) -> Goal {
        let live = ranks.live().count();
        let given = apportion(&single_precision(weights), ranks.num_slots(), live);
        let bound = ranks.bound(weights, &given.counts);
        Goal {
            enough: bound / self.replan.below,
            target: bound / self.replan.to.max(self.replan.below),
            only_recover: self.replan.recovery == Recovery::Cover,
        }
    }

    /// If few moves do not lead to what is enough, and more are allowed: searches on.
    fn search_on(&self, ranks: &Ranks, weights: &[f64], goal: Goal, way: &mut Vec<Stop>) {
        let Some(last) = way.last().filter(|last| last.largest > goal.enough) else {
            return;
        };
        let mut layout = Layout::new(ranks, weights, last.slots.clone());
        exchange(
            &mut layout,
            goal.target,
            self.patience,
            &mut Work::new(self.work),
        );
        if layout.largest() < last.largest {
            way.push(Stop {
                largest: layout.largest(),
                moved: usize::MAX,
                slots: layout.into_slots(),
            });
        }
    }
}

/// How `eplb` would place a layer, if it takes the request: every rank has as many slots, and nodes
/// divide groups and ranks.
fn baseline(request: &PlacementRequest<'_>, ranks: &Ranks) -> Option<Hierarchy> {
    let nodes = request.topology().num_nodes();
    if !ranks.are_alike() || ranks.num_slots() != request.num_slots() {
        return None;
    }
    let global = Hierarchy {
        groups: 1,
        nodes: 1,
        ranks: ranks.len(),
        slots: ranks.num_slots(),
    };
    match request.num_expert_groups() {
        Some(groups) if groups.is_multiple_of(nodes) => {
            ranks.len().is_multiple_of(nodes).then_some(Hierarchy {
                groups,
                nodes,
                ..global
            })
        }
        _ => Some(global),
    }
}
