//! How evenly a placement spreads a load.
//!
//! The load of an expert is split evenly over its replicas, which is what a replica selector does
//! on average. *Balancedness* is the mean over the maximum of the per-rank load: 1 is perfect, and
//! its inverse is how much longer the busiest rank works than it would have to.

use moekit_routing::Placement;
use serde::Serialize;

use crate::{ExpertLoad, ModelPlacement, PlacementError};

/// Balance of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct LayerBalance {
    /// Mean over maximum of the per-rank load; 1 if there is no load.
    pub balancedness: f64,
    /// Load of the busiest rank.
    pub max_load: f64,
    /// Mean load of the ranks.
    pub mean_load: f64,
}

/// Balance of a model.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct ModelBalance {
    /// Sum over layers of the mean over sum over layers of the maximum per-rank load: layers run
    /// one after the other, each as long as its busiest rank. vLLM's definition.
    pub aggregate: LayerBalance,
    /// Each layer.
    pub layers: Vec<LayerBalance>,
}

impl LayerBalance {
    /// The balance of per-rank loads, `[R]`.
    pub fn of(rank_loads: &[f64]) -> Self {
        Self::at_speeds(rank_loads, &[])
    }

    /// The balance of ranks of different speeds: a load counts as that which a rank of mean speed
    /// would take as long for.
    ///
    /// ```
    /// use moekit_placement::balance::LayerBalance;
    ///
    /// let balance = LayerBalance::at_speeds(&[6.0, 3.0], &[2.0, 1.0]);
    /// assert_eq!((balance.max_load, balance.balancedness), (4.5, 1.0));
    /// ```
    ///
    /// # Arguments
    ///
    /// - `rank_loads` - `[R]`.
    /// - `speeds` - `[R]`, relative to each other; empty if all are alike.
    pub fn at_speeds(rank_loads: &[f64], speeds: &[f64]) -> Self {
        let mean_speed = mean_speed(speeds);
        let times = rank_loads.iter().enumerate().map(|(rank, load)| {
            let speed = speeds.get(rank).copied().unwrap_or(mean_speed);
            load * (mean_speed / speed)
        });
        let max_load = times.fold(0.0, f64::max);
        let mean_load = rank_loads.iter().sum::<f64>() / rank_loads.len().max(1) as f64;
        Self::from_loads(mean_load, max_load)
    }

    fn from_loads(mean_load: f64, max_load: f64) -> Self {
        let balancedness = if max_load > 0.0 {
            mean_load / max_load
        } else {
            1.0
        };
        Self {
            balancedness,
            max_load,
            mean_load,
        }
    }
}

/// 1 if none is given.
pub(crate) fn mean_speed(speeds: &[f64]) -> f64 {
    match speeds {
        [] => 1.0,
        _ => speeds.iter().sum::<f64>() / speeds.len() as f64,
    }
}

/// The load of each rank, `[R]`, if every expert's load is split evenly over its replicas.
///
/// # Arguments
///
/// - `load` - tokens per logical expert, `[E]`.
///
/// # Errors
///
/// If the load has another number of experts than the placement.
pub fn rank_loads(placement: &Placement, load: &[f64]) -> Result<Vec<f64>, PlacementError> {
    if load.len() != placement.num_logical_experts() {
        return Err(PlacementError::Shape {
            what: "number of experts in the load".to_owned(),
            got: load.len(),
            expected: placement.num_logical_experts(),
        });
    }
    let per_replica: Vec<f64> = placement
        .replica_counts()
        .iter()
        .zip(load)
        .map(|(&n, l)| l / n as f64)
        .collect();
    let slots = placement.physical_to_logical();
    Ok(placement
        .rank_offsets()
        .windows(2)
        .map(|w| {
            slots[w[0]..w[1]]
                .iter()
                .map(|e| per_replica[e.index()])
                .sum()
        })
        .collect())
}

/// The balance of every layer and of the model.
///
/// # Errors
///
/// If load and placement differ in layers or experts.
pub fn model_balance(
    placement: &ModelPlacement,
    load: &ExpertLoad,
) -> Result<ModelBalance, PlacementError> {
    model_balance_at_speeds(placement, load, &[])
}

/// As [`model_balance`], of ranks of different speeds ([`LayerBalance::at_speeds`]).
///
/// # Errors
///
/// As [`model_balance`].
pub fn model_balance_at_speeds(
    placement: &ModelPlacement,
    load: &ExpertLoad,
    speeds: &[f64],
) -> Result<ModelBalance, PlacementError> {
    if placement.num_layers() != load.num_layers() {
        return Err(PlacementError::Shape {
            what: "number of layers in the load".to_owned(),
            got: load.num_layers(),
            expected: placement.num_layers(),
        });
    }
    let layers = placement
        .layers()
        .iter()
        .zip(load.layers())
        .map(|(layer, load)| {
            let loads = rank_loads(layer, load)?;
            Ok(LayerBalance::at_speeds(&loads, speeds))
        })
        .collect::<Result<Vec<_>, PlacementError>>()?;
    let mean = layers.iter().map(|l| l.mean_load).sum();
    let max = layers.iter().map(|l| l.max_load).sum();
    Ok(ModelBalance {
        aggregate: LayerBalance::from_loads(mean, max),
        layers,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_share_and_layers_add_up() {
        let hot = Placement::from_ranks(2, &[[0, 1], [0, 0]]).unwrap();
        let load = [6.0, 1.0];
        assert_eq!(rank_loads(&hot, &load).unwrap(), [3.0, 4.0]);
        let even = Placement::from_ranks(2, &[[0, 1], [1, 0]]).unwrap();
        let model = ModelPlacement::new(vec![hot, even]).unwrap();
        let balance =
            model_balance(&model, &ExpertLoad::from_rows(&[load, load]).unwrap()).unwrap();
        assert_eq!(balance.layers[0].balancedness, 3.5 / 4.0);
        assert_eq!(balance.layers[1].balancedness, 1.0);
        assert_eq!(balance.aggregate.balancedness, 7.0 / 7.5);
    }

    #[test]
    fn no_load_is_balanced() {
        assert_eq!(LayerBalance::of(&[0.0, 0.0]).balancedness, 1.0);
    }

    #[test]
    fn shapes_must_agree() {
        let placement = Placement::from_ranks(2, &[[0, 1]]).unwrap();
        assert!(rank_loads(&placement, &[1.0]).is_err());
        let model = ModelPlacement::new(vec![placement]).unwrap();
        let load = ExpertLoad::from_rows(&[[1.0, 1.0], [1.0, 1.0]]).unwrap();
        assert!(
            model_balance(&model, &load)
                .unwrap_err()
                .to_string()
                .contains("layers")
        );
    }
}
