//! The configuration.

use moekit_placement::PlacementError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) const NAME: &str = "adaptive";

/// Balances the load of the ranks to within a tolerance of the provable bound.
///
/// Every setting has a default. Nothing is random and nothing depends on time: `work` limits how
/// many pairs of slots are compared.
///
/// ```
/// use moekit_placement::{ExpertLoad, PlacementRequest, PlacementStrategy, Topology, balance};
/// use moekit_strategy_adaptive::Adaptive;
///
/// // 232 with DeepSeek's balancer; 196.67 is the optimum.
/// let load = ExpertLoad::from_rows(&[[600., 560., 120., 120., 20., 10., 10., 10.]])?;
/// let topology = Topology::new(8)?;
/// let request = PlacementRequest::new(1, 8, &topology)?.with_num_slots(16)?.with_load(&load)?;
/// let plan = Adaptive::default().place(&request)?;
/// let balance = balance::model_balance(&plan, &load)?;
/// assert_eq!((balance.layers[0].max_load * 100.0).round(), 19667.0);
/// # Ok::<(), moekit_placement::PlacementError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Adaptive {
    /// The distance from the bound, as a part of it, at which a layer is good enough.
    pub tolerance: f64,
    /// The same where expert groups have a home node: how much balance may be given up to keep
    /// tokens there.
    pub node_tolerance: f64,
    /// By how much a rank may be heavier than the lightest, as a part of the mean load of a rank,
    /// if a replica there connects ranks: what the split of each step can even out later is what
    /// replicas connect.
    pub connect: f64,
    /// Standard deviations of the load from step to step that are added to its mean, if the load
    /// is known step by step.
    pub risk: f64,
    /// Relative speed of each rank, `[R]`; empty if all are alike.
    pub speeds: Vec<f64>,
    /// Whether the slots beyond one per expert are given over all layers together: layers get as many
    /// as their loads call for, and every rank the same sum as without. A placement in force with that
    /// sum on every rank keeps the slots of its layers.
    pub layer_budgets: bool,
    /// Work that goes into one search, in pairs of slots that are compared; hard layers get several
    /// searches, some with a multiple of it.
    pub work: usize,
    /// Exchanges of replicas in a row without an improvement after which a start is given up.
    pub patience: usize,
    /// What happens if a placement is in force.
    pub replan: Replan,
}

/// What happens if a placement is in force. Balances are parts of what the bound allows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[non_exhaustive]
pub struct Replan {
    /// A layer whose balance is this good stays as it is.
    pub below: f64,
    /// The balance that the others are brought to, at least `below`.
    pub to: f64,
    /// A layer moves only if its largest load goes down by more than this part.
    pub min_gain: f64,
    /// What is done if experts were lost with their rank.
    pub recovery: Recovery,
}

/// What is done if experts sit on no rank any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Recovery {
    /// Bring them back with as few moves as possible; balance with the next plan.
    #[default]
    Cover,
    /// Bring them back and balance at once.
    Balance,
}

impl Default for Adaptive {
    fn default() -> Self {
        Self {
            tolerance: 0.0008,
            node_tolerance: 0.015,
            connect: 0.2,
            risk: 0.0,
            speeds: Vec::new(),
            layer_budgets: false,
            work: 700_000,
            patience: 16,
            replan: Replan::default(),
        }
    }
}

impl Default for Replan {
    fn default() -> Self {
        Self {
            below: 0.981,
            to: 0.986,
            min_gain: 0.002,
            recovery: Recovery::Cover,
        }
    }
}

impl Adaptive {
    /// Checks the settings against the number of ranks.
    pub(crate) fn check(&self, num_ranks: usize) -> Result<(), PlacementError> {
        let refuse = |message: String| Err(PlacementError::precondition(NAME, message));
        for (name, value, limit) in [
            ("tolerance", self.tolerance, 1.0),
            ("node_tolerance", self.node_tolerance, 1.0),
            ("connect", self.connect, f64::MAX),
            ("risk", self.risk, 1e6),
            ("replan.below", self.replan.below, 1.0),
            ("replan.to", self.replan.to, 1.0),
            ("replan.min_gain", self.replan.min_gain, 1.0),
        ] {
            if !(0.0..=limit).contains(&value) {
                return refuse(format!(
                    "`{name}` must be a number from 0 to {limit}, got {value:?}"
                ));
            }
        }
        if self.replan.to == 0.0 || self.replan.below == 0.0 {
            return refuse("`replan.below` and `replan.to` must be above 0".to_owned());
        }
        if self.replan.to < self.replan.below {
            return refuse(format!(
                "`replan.to` is {}, below `replan.below`, {}: a layer that is brought there would be planned again",
                self.replan.to, self.replan.below
            ));
        }
        if !self.speeds.is_empty() && self.speeds.len() != num_ranks {
            let got = self.speeds.len();
            return refuse(format!(
                "`speeds` has {got} values for {num_ranks} ranks; give one each, or none"
            ));
        }
        match self
            .speeds
            .iter()
            .find(|s| !(s.is_finite() && **s > 1e-6 && **s < 1e6))
        {
            Some(speed) => refuse(format!(
                "a relative speed is a number from 1e-6 to 1e6, got {speed:?}"
            )),
            None => Ok(()),
        }
    }
}
