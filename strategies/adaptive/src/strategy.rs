//! The strategy: layer by layer, and over all layers where a budget is shared.

use std::borrow::Cow;

use moekit_placement::balance::{LayerBalance, rank_loads};
use moekit_placement::{
    Capabilities, MigrationBudget, ModelPlacement, Placement, PlacementError, PlacementRequest,
    PlacementStrategy, typetag,
};

use crate::apportion::apportion;
use crate::baseline::Hierarchy;
use crate::budget;
use crate::layers::{slots_in_force, slots_of_layers};
use crate::layout::Layout;
use crate::order;
use crate::plan::{Effort, Layer};
use crate::ranks::Ranks;
use crate::replan::{Goal, Held, Stop, renumbered, way};
use crate::settings::{Adaptive, NAME, Recovery};
use crate::surplus;
use crate::undo::undo;
use crate::weights::weights;

#[typetag::serde(name = "adaptive")]
impl PlacementStrategy for Adaptive {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        self.check(request.topology().num_ranks())?;
        self.check_risk(request)?;
        let weights: Vec<Cow<'_, [f64]>> = (0..request.num_layers())
            .map(|layer| weights(request, layer, self.risk))
            .collect();
        let even = Ranks::new(request.slots_per_rank(), request.topology(), &self.speeds);
        if !self.layer_budgets {
            return self.place_on(request, &weights, &[even]);
        }
        if let Some(slots) = slots_in_force(request) {
            return self.place_on(request, &weights, &with_slots(&even, &slots));
        }
        let shared = slots_of_layers(request, &weights, &even, &self.effort());
        let shared = self.place_on(request, &weights, &with_slots(&even, &shared));
        if request.current().is_none() {
            return shared;
        }
        // Slots that a layer gains are experts that travel: as many in every layer may be the better way.
        match (shared, self.place_on(request, &weights, &[even])) {
            (Ok(shared), Ok(even)) => {
                let time = |plan: &ModelPlacement| self.time(plan, &weights);
                Ok(if time(&shared)? < time(&even)? {
                    shared
                } else {
                    even
                })
            }
            (shared, even) => shared.or(even),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.uses_load = true;
        capabilities.uses_current = true;
        capabilities.uses_nodes = true;
        capabilities.keeps_budget = true;
        capabilities.decides_slots = self.layer_budgets;
        capabilities
    }

    fn speeds(&self) -> &[f64] {
        &self.speeds
    }
}

impl Adaptive {
    /// A deviation needs steps.
    fn check_risk(&self, request: &PlacementRequest<'_>) -> Result<(), PlacementError> {
        let steps = request.trace().map_or(0, |trace| trace.steps().len());
        if self.risk == 0.0 || request.load().is_none() || steps >= 2 {
            return Ok(());
        }
        Err(PlacementError::precondition(
            NAME,
            format!("`risk` needs the load of 2 steps or more, got {steps}"),
        ))
    }

    /// A plan on the ranks of each layer; of one layer if all are the same.
    fn place_on(
        &self,
        request: &PlacementRequest<'_>,
        weights: &[Cow<'_, [f64]>],
        all: &[Ranks],
    ) -> Result<ModelPlacement, PlacementError> {
        let experts = request.num_logical_experts();
        let used: Vec<Ranks> = all
            .iter()
            .map(|ranks| ranks.without_surplus(experts))
            .collect();
        let layers = match request.current() {
            Some(current) => self.replan(request, current, &used, weights)?,
            None => (0..weights.len())
                .map(|l| {
                    self.plan(request, of_layer(&used, l), &weights[l])
                        .into_slots()
                })
                .collect(),
        };
        let layers = layers.into_iter().enumerate().map(|(l, slots)| {
            let all = of_layer(all, l);
            let slots = surplus::fill(of_layer(&used, l), slots, all, &weights[l]);
            let slots = slots.into_iter().map(|e| e as usize).collect();
            Ok(Placement::new(experts, slots, all.offsets().to_vec())?)
        });
        ModelPlacement::new(layers.collect::<Result<_, PlacementError>>()?)
    }

    /// What all layers take: the sum of the times of their slowest ranks.
    fn time(
        &self,
        plan: &ModelPlacement,
        weights: &[Cow<'_, [f64]>],
    ) -> Result<f64, PlacementError> {
        let layers = plan.layers().iter().zip(weights);
        layers
            .map(|(layer, weights)| {
                let loads = rank_loads(layer, weights)?;
                Ok(LayerBalance::at_speeds(&loads, &self.speeds).max_load)
            })
            .sum()
    }

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
        layer(request, ranks, weights).plan(&self.effort())
    }

    /// All layers from the placement in force.
    fn replan(
        &self,
        request: &PlacementRequest<'_>,
        current: &ModelPlacement,
        ranks: &[Ranks],
        weights: &[Cow<'_, [f64]>],
    ) -> Result<Vec<Vec<u32>>, PlacementError> {
        let budget = request.budget().slots();
        let ways: Vec<Vec<Stop>> = weights
            .iter()
            .zip(current.layers())
            .enumerate()
            .map(|(l, (weights, current))| {
                let ranks = of_layer(ranks, l);
                let goal = self.goal(ranks, weights);
                let (mut way, recovers) = way(ranks, weights, current, goal, budget.is_none());
                if budget.is_none() && !recovers {
                    way.extend(self.anew(request, ranks, weights, current, goal, &way));
                }
                way
            })
            .collect();
        let Some(stops) = budget::choose(&ways, budget, self.replan.min_gain) else {
            let needed = ways.iter().map(|way| way[0].moved as u64).sum();
            return Err(too_small(request.budget(), needed));
        };
        let chosen = ways.into_iter().zip(stops);
        Ok(chosen
            .map(|(mut way, stop)| way.swap_remove(stop).slots)
            .collect())
    }

    fn goal(&self, ranks: &Ranks, weights: &[f64]) -> Goal {
        let live = ranks.live().count();
        let load = order::single_precision(weights);
        let given = apportion(&load, &order::experts(&load), ranks.num_slots(), live);
        let bound = ranks.bound(weights, &given.counts);
        Goal {
            enough: bound / self.replan.below,
            target: bound / self.replan.to,
            only_recover: self.replan.recovery == Recovery::Cover,
        }
    }

    /// If few moves do not lead to what is enough and many are allowed: where the search gets from there,
    /// uphill too, or else a plan from nothing, if it is better.
    fn anew(
        &self,
        request: &PlacementRequest<'_>,
        ranks: &Ranks,
        weights: &[f64],
        current: &Placement,
        goal: Goal,
        way: &[Stop],
    ) -> Option<Stop> {
        let last = way.last().filter(|last| last.largest > goal.enough)?;
        let effort = self.effort();
        let layer = layer(request, ranks, weights);
        let parts = (0..=SEARCHED_FROM).map(|part| (way.len() - 1) * part / SEARCHED_FROM);
        let mut searched_from: Vec<usize> = parts.collect();
        searched_from.dedup();
        let held = Held::of(current, ranks);
        let searched = searched_from
            .into_iter()
            .map(|stop| layer.search_on(&way[stop].slots, goal.enough, &effort))
            .filter(|layout| layout.largest() <= goal.enough)
            .map(|mut layout| {
                undo(&mut layout, &held, goal.enough);
                held.stop(&layout)
            });
        if let Some(stop) = searched.min_by_key(|stop| stop.moved) {
            return Some(stop);
        }
        let mut layout = layer.plan(&effort);
        let largest = layout.largest();
        if last.largest - largest <= self.replan.min_gain * last.largest {
            return None;
        }
        if ranks.are_alike() && ranks.num_nodes() == 1 {
            layout = Layout::new(ranks, weights, renumbered(ranks, layout.slots(), &held));
        }
        undo(&mut layout, &held, largest.max(goal.target));
        // It is the last stop, and without a budget.
        Some(held.stop(&layout))
    }
}

/// In as many parts the way of few moves is cut; the search goes on from their ends.
const SEARCHED_FROM: usize = 4;

/// The first step of all ways brings `slots` experts, more than the budget.
fn too_small(budget: MigrationBudget, slots: u64) -> PlacementError {
    match budget {
        MigrationBudget::Bytes { budget, per_expert } => PlacementError::BudgetTooSmall {
            what: "bytes",
            budget,
            needed: slots.saturating_mul(per_expert),
        },
        _ => PlacementError::BudgetTooSmall {
            what: "slots",
            budget: budget.slots().unwrap_or_default() as u64,
            needed: slots,
        },
    }
}

fn with_slots(ranks: &Ranks, layers: &[Vec<usize>]) -> Vec<Ranks> {
    layers.iter().map(|slots| ranks.with_slots(slots)).collect()
}

fn layer<'a>(request: &PlacementRequest<'_>, ranks: &'a Ranks, weights: &'a [f64]) -> Layer<'a> {
    Layer {
        ranks,
        weights,
        num_groups: request.num_expert_groups(),
        baseline: baseline(request, ranks),
    }
}

fn of_layer(ranks: &[Ranks], layer: usize) -> &Ranks {
    &ranks[layer.min(ranks.len() - 1)]
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
