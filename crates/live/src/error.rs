use moekit_fused_moe::FusedMoeError;
use moekit_parallel::CommError;
use moekit_placement::PlacementError;
use moekit_quant::QuantError;
use moekit_routing::{LogicalExpert, Rank, RoutingError};
use thiserror::Error;

use crate::expert::ExpertError;

/// Whatever a source of experts finds wrong.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong on a rank of a live group.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum LiveError {
    /// The group has ended: a rank failed, left or was lost.
    #[error("the group has ended: {0}")]
    Group(#[source] CommError),
    /// A forward pass failed; the group has ended with it.
    #[error(transparent)]
    Layer(#[from] FusedMoeError),
    /// A message between ranks that cannot be understood, or trusted.
    #[error("the message of rank {rank}: {problem}")]
    Message {
        /// Who sent it.
        rank: Rank,
        /// What is wrong.
        problem: String,
    },
    /// Ranks that are not at the same point.
    #[error("rank {rank} has {what} {theirs}, this rank has {ours}")]
    Disagreement {
        /// The other rank.
        rank: Rank,
        /// In what.
        what: &'static str,
        /// Its value.
        theirs: u64,
        /// The value here.
        ours: u64,
    },
    /// A staging budget that holds no expert.
    #[error(
        "a staging budget of {budget} bytes per rank is too small: one expert of layer {layer} takes {needed}"
    )]
    Staging {
        /// The budget.
        budget: u64,
        /// Bytes of the largest expert.
        needed: u64,
        /// Its layer.
        layer: usize,
    },
    /// Settings that make no sense.
    #[error("{0}")]
    Config(String),
    /// An expert could not be read.
    #[error("expert {expert} of layer {layer} cannot be read: {source}")]
    Source {
        /// The layer.
        layer: usize,
        /// The expert.
        expert: LogicalExpert,
        /// Why.
        source: SourceError,
    },
    /// No such layer.
    #[error("layer {layer} does not exist: there are layers 0..{num_layers}")]
    UnknownLayer {
        /// The layer asked for.
        layer: usize,
        /// Layers.
        num_layers: usize,
    },
    /// The same members have failed at the same step again and again: another attempt would not help.
    /// The error before tells why.
    #[error("the same ranks have failed {attempts} times at the step after {step}")]
    NoProgress {
        /// Steps done.
        step: u64,
        /// Failures in a row.
        attempts: u32,
    },
    /// This rank is in no group: it has left, or its group has ended and was not recovered.
    #[error("this rank is in no group: {0}")]
    NoGroup(&'static str),
    /// An expert arrived damaged.
    #[error(transparent)]
    Expert(#[from] ExpertError),
    /// A plan that cannot be.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A table that cannot be.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// Weights that do not fit each other.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

impl LiveError {
    /// Whether the group has ended with this error, so that the ranks that are left may
    /// [recover](crate::LiveRank::recover).
    pub fn ends_group(&self) -> bool {
        matches!(
            self,
            Self::Group(_) | Self::Layer(_) | Self::Message { .. } | Self::Disagreement { .. }
        )
    }
}

impl From<CommError> for LiveError {
    fn from(error: CommError) -> Self {
        Self::Group(error)
    }
}

/// An error and what caused it, joined by `: `.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent errors repeat what they wrap.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
