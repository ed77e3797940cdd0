//! The part of a migration that a budget allows.

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};

use super::gain::{Gain, Loads};
use super::plan::ModelMigration;
use super::walk::{Arrival, Limits, Walk};
use crate::{ModelPlacement, PlacementError};

/// How much may arrive at the ranks in one step, over all layers: from other ranks and from the
/// checkpoint together. Copies inside of a rank are free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StepBudget {
    /// Experts.
    Slots(usize),
    /// Bytes; the planner must know the bytes of an expert.
    Bytes(u64),
}

/// A migration cut in two.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MigrationCut {
    /// What the budget allows.
    pub first: ModelMigration,
    /// The placement after `first`, over the ranks of the topology. Every expert is covered.
    pub reached: ModelPlacement,
    /// From `reached` to the end; it is empty if the budget allows all.
    pub rest: ModelMigration,
    /// Experts that arrive in `first`.
    pub slots: usize,
    /// Bytes that arrive in `first`, if the planner knows the bytes of an expert.
    pub bytes: Option<u64>,
    /// By how much `first` lowers the largest rank load, summed over the layers, in the unit of the
    /// load. It may be negative: some ways lead uphill first.
    pub gain: f64,
}

/// A layer of which a part is chosen.
pub(super) struct Layer<'a> {
    pub(super) walk: Walk,
    pub(super) load: &'a [f64],
    /// What an arrival takes from the budget.
    cost: u64,
    /// Bytes of an arrival, if they are known.
    bytes: Option<u64>,
    /// The best unit that is left, with its gain.
    best: Option<(Gain, Vec<Arrival>)>,
}

/// What was taken from a migration.
pub(super) struct Taken {
    pub(super) slots: usize,
    pub(super) bytes: Option<u64>,
    /// Units after which the largest loads of the layers were the lowest in sum, with every expert
    /// brought back that no rank holds.
    pub(super) best_units: usize,
}

impl<'a> Layer<'a> {
    pub(super) fn new(walk: Walk, load: &'a [f64], cost: u64, bytes: Option<u64>) -> Self {
        Self {
            walk,
            load,
            cost,
            bytes,
            best: None,
        }
    }

    /// Load of the busiest rank.
    pub(super) fn largest_load(&self) -> f64 {
        Loads::of(self.walk.slots(), self.load).largest()
    }

    /// Arrivals that a budget pays.
    fn affordable(&self, budget: u64) -> usize {
        usize::try_from(budget / self.cost.max(1)).unwrap_or(usize::MAX)
    }

    fn find_best(&mut self, budget: u64) {
        let limits = Limits {
            arrivals: self.affordable(budget),
            room: &|_| true,
        };
        let loads = Loads::of(self.walk.slots(), self.load);
        let mut best: Option<(Gain, Vec<Arrival>)> = None;
        self.walk.units(&limits, &mut |unit| {
            let gain = loads.gain(&self.walk, unit, self.bytes.unwrap_or(1) as f64);
            if best.as_ref().is_none_or(|(most, _)| gain.cmp(most).is_gt()) {
                best = Some((gain, unit.to_vec()));
            }
            ControlFlow::Continue(())
        });
        self.best = best;
    }

    /// What the smallest unit costs, if there is any.
    fn smallest(&self) -> Option<u64> {
        let limits = Limits {
            arrivals: usize::MAX,
            room: &|_| true,
        };
        let mut smallest: Option<usize> = None;
        self.walk.units(&limits, &mut |unit| {
            smallest = Some(smallest.map_or(unit.len(), |s| s.min(unit.len())));
            match unit.len() {
                1 => ControlFlow::Break(()),
                _ => ControlFlow::Continue(()),
            }
        });
        Some(self.cost.saturating_mul(smallest? as u64))
    }
}

/// Carries out the best units of all layers, one after the other, while the budget lasts; ties go to
/// the lowest layer.
///
/// # Arguments
///
/// - `most_units` - units after which it ends, whatever is left.
///
/// # Errors
///
/// If the budget pays not even the smallest unit.
pub(super) fn spend(
    layers: &mut [Layer<'_>],
    budget: StepBudget,
    most_units: usize,
) -> Result<Taken, PlacementError> {
    let (budget, what) = match budget {
        StepBudget::Slots(slots) => (slots as u64, "slots"),
        StepBudget::Bytes(bytes) => (bytes, "bytes"),
    };
    let mut taken = Taken {
        slots: 0,
        bytes: Some(0),
        best_units: 0,
    };
    let mut left = budget;
    for layer in &mut *layers {
        layer.find_best(left);
    }
    // By how much the largest loads are lower than at the start.
    let (mut lowered, mut most_lowered) = (0.0, 0.0);
    let mut units = 0;
    while units < most_units
        && let Some(layer) = best_layer(layers)
    {
        if let Some((gain, unit)) = layer.best.take() {
            let before = layer.largest_load();
            layer.walk.apply(&unit);
            units += 1;
            lowered += before - layer.largest_load();
            if gain.restores() || lowered > most_lowered {
                (most_lowered, taken.best_units) = (lowered, units);
            }
            let arrivals = unit.len() as u64;
            left = left.saturating_sub(layer.cost.saturating_mul(arrivals));
            taken.slots += unit.len();
            taken.bytes = layer.bytes.and_then(|bytes| {
                Some(taken.bytes?.saturating_add(bytes.saturating_mul(arrivals)))
            });
            layer.find_best(left);
        }
        for layer in &mut *layers {
            let too_much = |(_, unit): &(Gain, Vec<Arrival>)| unit.len() > layer.affordable(left);
            if layer.best.as_ref().is_some_and(too_much) {
                layer.find_best(left);
            }
        }
    }
    match layers.iter().filter_map(Layer::smallest).min() {
        Some(needed) if taken.slots == 0 && most_units > 0 => Err(PlacementError::BudgetTooSmall {
            what,
            budget,
            needed,
        }),
        _ => Ok(taken),
    }
}

/// The layer with the best unit, the lowest of several.
fn best_layer<'l, 'a>(layers: &'l mut [Layer<'a>]) -> Option<&'l mut Layer<'a>> {
    let mut best: Option<(usize, Gain)> = None;
    for (l, layer) in layers.iter().enumerate() {
        if let Some((gain, _)) = &layer.best
            && best.is_none_or(|(_, most)| gain.cmp(&most).is_gt())
        {
            best = Some((l, *gain));
        }
    }
    layers.get_mut(best?.0)
}

/// Carries out units, whichever come first, until no rank has a staging buffer left that it needs.
pub(super) fn fill_stage(walk: &mut Walk, staging: usize) {
    let mut staged = vec![0_usize; walk.slots().len()];
    loop {
        let mut next = Vec::new();
        let room = |a: &Arrival| a.overwrites.is_none() || staged[a.rank] < staging;
        let limits = Limits {
            arrivals: usize::MAX,
            room: &room,
        };
        walk.units(&limits, &mut |unit| {
            next.extend_from_slice(unit);
            ControlFlow::Break(())
        });
        if next.is_empty() {
            return;
        }
        for arrival in &next {
            staged[arrival.rank] += usize::from(arrival.overwrites.is_some());
        }
        walk.apply(&next);
    }
}
