use std::collections::HashMap;
use std::path::Path;

use moekit_placement::ModelPlacement;
use moekit_placement::balance::LayerBalance;
use moekit_routing::Placement;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde::Serialize;

use crate::{EvalError, file};

/// What a simulation measured, for one strategy and one split.
///
/// Balance is mean over maximum of the per-rank load, 1 is perfect. Layers without load are left
/// out of every mean.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct SimulationReport {
    /// The strategy.
    pub strategy: String,
    /// How tokens were split over replicas.
    pub selector: String,
    /// Mean balance of a plan on the window that it was made from, equal split, over intervals
    /// and layers.
    pub balance_plan: f64,
    /// Mean balance of the load of a whole interval, as it was split, over intervals and layers.
    pub balance_next: f64,
    /// Mean balance of single steps over steps and layers.
    pub balance_step_mean: f64,
    /// Their first percentile.
    pub balance_step_p1: f64,
    /// The same three with layers weighed by their time: the sum of the means over the sum of the
    /// maxima.
    pub aggregate: AggregateBalance,
    /// Mean of the largest balance that any plan could have on its window, if a
    /// [`Certificate`](super::Certificate) gives it.
    pub bound: Option<f64>,
    /// Mean of `1 - optimum / maximum` over steps and layers: how far the busiest rank was from
    /// the best split of its step, if a [`Certificate`](super::Certificate) gives that.
    pub certificate_gap_mean: Option<f64>,
    /// Mean share of all slots that a re-plan filled with an expert which their rank did not hold.
    /// 0 if there was no re-plan.
    pub slots_moved_fraction: f64,
    /// The same slots, over all re-plans and layers.
    pub slots_moved: usize,
    /// Their bytes, if the bytes of an expert are known.
    pub bytes_moved: Option<u64>,
    /// Mean number of rounds in which a layer's migration takes place, over re-plans and layers: in
    /// each, a rank sends one expert and receives one.
    pub migration_rounds_mean: f64,
    /// Share of the tokens that were served on another node than the one they came from.
    pub off_node_fraction: f64,
    /// Mean time of a plan.
    pub plan_seconds_per_interval: f64,
    /// Mean time of a split, per step and layer.
    pub split_micros_per_layer: f64,
    /// Plans made.
    pub intervals: usize,
    /// Plans that took the place of another placement.
    pub replans: usize,
    /// Steps measured.
    pub steps: usize,
}

/// See [`SimulationReport::aggregate`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct AggregateBalance {
    /// On the window of the plan.
    pub plan: f64,
    /// Over an interval.
    pub next: f64,
    /// In a step.
    pub step: f64,
}

/// Balances on their way to a mean.
#[derive(Clone, Debug, Default)]
pub(super) struct Balances {
    /// Of the ranks; empty if all are alike.
    speeds: Vec<f64>,
    each: Vec<f64>,
    mean_load: f64,
    max_load: f64,
}

impl Balances {
    pub(super) fn at_speeds(speeds: &[f64]) -> Self {
        Self {
            speeds: speeds.to_vec(),
            ..Self::default()
        }
    }

    /// Adds a layer, unless it has no load. Returns its largest rank load.
    pub(super) fn push(&mut self, rank_loads: &[f64]) -> Option<f64> {
        let balance = LayerBalance::at_speeds(rank_loads, &self.speeds);
        if balance.max_load <= 0.0 {
            return None;
        }
        self.each.push(balance.balancedness);
        self.mean_load += balance.mean_load;
        self.max_load += balance.max_load;
        Some(balance.max_load)
    }

    pub(super) fn mean(&self) -> f64 {
        mean(&self.each).unwrap_or(1.0)
    }

    pub(super) fn aggregate(&self) -> f64 {
        if self.max_load > 0.0 {
            self.mean_load / self.max_load
        } else {
            1.0
        }
    }

    /// The first percentile, between the two nearest values in proportion.
    pub(super) fn first_percentile(&self) -> f64 {
        let mut sorted = self.each.clone();
        sorted.sort_by(f64::total_cmp);
        let Some(last) = sorted.len().checked_sub(1) else {
            return 1.0;
        };
        let place = 0.01 * last as f64;
        let (below, above) = (
            sorted[place as usize],
            sorted[(place.ceil() as usize).min(last)],
        );
        below + (above - below) * place.fract()
    }
}

pub(super) fn mean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
}

/// A finished simulation.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Simulated {
    /// The figures.
    pub report: SimulationReport,
    /// The placement of each interval.
    pub placements: Vec<ModelPlacement>,
    /// The step of the trace at which each interval starts.
    pub interval_starts: Vec<usize>,
    /// Load of each rank in each measured step, `[S, L, R]` row-major. The first is the step at
    /// which the first interval starts.
    pub rank_load: Vec<f64>,
}

impl Simulated {
    /// Writes what it takes to check the figures to a safetensors file: `rank_load` `[S, L, R]`
    /// of the measured steps, `step` `[S]` (their places in the trace), `physical_to_logical`
    /// `[intervals, L, P]`, `interval_start` `[intervals]` (steps of the trace) and
    /// `rank_offsets` `[R + 1]` (the first slot of each rank). Where the slots of a rank differ from layer
    /// to layer or plan to plan, `rank_offsets` is `[intervals, L, R + 1]` and `P` the most slots of a
    /// layer; -1 stands where a layer has fewer.
    ///
    /// # Errors
    ///
    /// If the file cannot be written.
    pub fn dump(&self, path: impl AsRef<Path>) -> Result<(), EvalError> {
        let path = path.as_ref();
        let data = self.tensors();
        let failed = |error: safetensors::SafeTensorError| EvalError::content(path, error);
        let tensors = data
            .iter()
            .map(|(name, dtype, shape, bytes)| {
                Ok((*name, TensorView::new(*dtype, shape.clone(), bytes)?))
            })
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed)?;
        let metadata = HashMap::from([
            ("strategy".to_owned(), self.report.strategy.clone()),
            ("selector".to_owned(), self.report.selector.clone()),
        ]);
        let bytes = safetensors::serialize(tensors, Some(metadata)).map_err(failed)?;
        file::write_whole(path, &bytes)
    }

    fn tensors(&self) -> Vec<Tensor> {
        let layers: Vec<&Placement> = self.placements.iter().flat_map(|p| p.layers()).collect();
        let intervals = self.placements.len();
        let (num_layers, num_ranks) = self
            .placements
            .first()
            .map_or((0, 0), |p| (p.num_layers(), p.num_ranks()));
        let uniform = layers
            .windows(2)
            .all(|w| w[0].rank_offsets() == w[1].rank_offsets());
        let slots = layers
            .iter()
            .map(|layer| layer.num_physical_experts())
            .max();
        let slots = slots.unwrap_or_default();
        let steps = self.rank_load.len() / (num_layers * num_ranks).max(1);
        let start = self.interval_starts.first().copied().unwrap_or_default();

        let experts = layers.iter().flat_map(|layer| {
            let experts = layer.physical_to_logical().iter().map(|e| e.index() as i64);
            experts.chain(std::iter::repeat(-1)).take(slots)
        });
        let (offsets_of, offsets_shape) = match uniform {
            true => (&layers[..layers.len().min(1)], vec![num_ranks + 1]),
            false => (&layers[..], vec![intervals, num_layers, num_ranks + 1]),
        };
        let offsets = offsets_of.iter().flat_map(|layer| layer.rank_offsets());
        let rank_load = self.rank_load.iter().flat_map(|v| v.to_le_bytes());
        let starts = self.interval_starts.iter().map(|&step| step as i64);
        let shape = vec![steps, num_layers, num_ranks];
        vec![
            ("rank_load", Dtype::F64, shape, rank_load.collect()),
            integers(
                "step",
                vec![steps],
                (start..start + steps).map(|s| s as i64),
            ),
            integers(
                "physical_to_logical",
                vec![intervals, num_layers, slots],
                experts,
            ),
            integers("interval_start", vec![intervals], starts),
            integers(
                "rank_offsets",
                offsets_shape,
                offsets.map(|&slot| slot as i64),
            ),
        ]
    }
}

/// Name, type, shape and bytes of a tensor.
type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

fn integers(name: &'static str, shape: Vec<usize>, values: impl Iterator<Item = i64>) -> Tensor {
    let bytes = values.flat_map(i64::to_le_bytes).collect();
    (name, Dtype::I64, shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_between_values() {
        let of = |values: Vec<f64>| {
            let balances = Balances {
                each: values,
                ..Balances::default()
            };
            balances.first_percentile()
        };
        assert_eq!(of(vec![]), 1.0);
        assert_eq!(of(vec![0.5]), 0.5);
        assert!((of((0..=200).rev().map(f64::from).collect()) - 2.0).abs() < 1e-12);
        assert!((of(vec![1.0, 0.0]) - 0.01).abs() < 1e-12);
    }

    #[test]
    fn layers_without_load_do_not_count() {
        let mut balances = Balances::default();
        assert_eq!(balances.push(&[0.0, 0.0]), None);
        assert_eq!((balances.mean(), balances.aggregate()), (1.0, 1.0));
        assert_eq!(balances.push(&[1.0, 3.0]), Some(3.0));
        assert_eq!(balances.push(&[30.0, 30.0]), Some(30.0));
        assert!((balances.mean() - (2.0 / 3.0 + 1.0) / 2.0).abs() < 1e-12);
        assert!((balances.aggregate() - 32.0 / 33.0).abs() < 1e-12);
    }
}
