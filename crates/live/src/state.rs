use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the rebalancer does. The same on all ranks after every step.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
#[non_exhaustive]
pub enum RebalanceState {
    /// Nothing is planned and nothing moves.
    #[default]
    Idle,
    /// A planner is at work on a thread of its own.
    Planning {
        /// The step in which it began.
        since: u64,
    },
    /// Experts move.
    Moving {
        /// The layer that migrates.
        layer: usize,
        /// Layers that wait.
        layers_left: usize,
        /// The stage of the layer, from 0.
        stage: usize,
        /// The round of the stage, from 0.
        round: usize,
    },
    /// The last attempt failed. The committed tables are in force, and it will be tried again.
    Failed {
        /// Why.
        reason: String,
        /// The step in which it failed.
        step: u64,
        /// The step from which on it is tried again.
        retry: u64,
    },
}

impl RebalanceState {
    /// The state in one word.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Planning { .. } => "planning",
            Self::Moving { .. } => "moving",
            Self::Failed { .. } => "failed",
        }
    }
}

impl std::fmt::Display for RebalanceState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Idle => f.write_str("idle"),
            Self::Planning { since } => write!(f, "planning since step {since}"),
            Self::Moving {
                layer,
                layers_left,
                stage,
                round,
            } => write!(
                f,
                "moving layer {layer}, stage {stage}, round {round}; {layers_left} layers left"
            ),
            Self::Failed {
                reason,
                step,
                retry,
            } => write!(
                f,
                "failed in step {step} because {reason}; again from step {retry}"
            ),
        }
    }
}

/// Something that happened between two steps.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
#[non_exhaustive]
pub enum Event {
    /// A planner has started.
    PlanStarted,
    /// A plan is being carried out.
    PlanAdopted {
        /// Layers that change.
        layers: usize,
        /// Routed tokens that the busiest ranks are spared per step, over all layers.
        gain: f64,
    },
    /// A plan was thrown away.
    PlanSkipped {
        /// Why.
        reason: String,
    },
    /// A layer has new weights and the new table, on all ranks in this step.
    Committed {
        /// The layer.
        layer: usize,
        /// Generation of the table.
        generation: u64,
        /// Experts that this rank received.
        received: usize,
    },
    /// Planning or moving failed; the committed tables stay in force.
    Failed {
        /// Why.
        reason: String,
    },
    /// Another group is in force.
    Regrouped {
        /// The members, by rank.
        members: Vec<u64>,
        /// Experts that no rank holds, over all layers.
        absent: usize,
    },
    /// This rank is no longer of the group.
    Left,
}

/// What a step ended with, on this rank.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// What happened.
    pub events: Vec<Event>,
    /// What goes on.
    pub state: RebalanceState,
    /// Bytes of experts that this rank sent.
    pub sent_bytes: u64,
    /// Bytes of experts that this rank received.
    pub received_bytes: u64,
    /// Time that this rank spent between the forward passes, without waiting for other ranks.
    pub work: Duration,
    /// Time in the exchange between ranks, waiting for slower ones included.
    pub exchange: Duration,
    /// Of rank 0, when loads were due: what the ranks did since the last time.
    pub balance: Option<LoadReport>,
}

/// How the tokens of the last steps fell on the ranks.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// Steps that it covers.
    pub steps: u64,
    /// Routed tokens that each rank served in each layer, `[layers][ranks]`.
    pub tokens: Vec<Vec<u64>>,
    /// Mean over maximum of the ranks' tokens, for each layer.
    pub balancedness: Vec<f64>,
    /// Sum over layers of the mean over the sum of the maximum.
    pub aggregate: f64,
}

impl LoadReport {
    /// From routed tokens per layer and rank.
    pub(crate) fn new(steps: u64, tokens: Vec<Vec<u64>>) -> Self {
        let (mut means, mut maxima) = (0.0, 0.0);
        let mut balancedness = Vec::with_capacity(tokens.len());
        for ranks in &tokens {
            let max = ranks.iter().copied().max().unwrap_or(0) as f64;
            let mean = ranks.iter().sum::<u64>() as f64 / ranks.len().max(1) as f64;
            balancedness.push(if max > 0.0 { mean / max } else { 1.0 });
            means += mean;
            maxima += max;
        }
        let aggregate = if maxima > 0.0 { means / maxima } else { 1.0 };
        Self {
            steps,
            tokens,
            balancedness,
            aggregate,
        }
    }
}
