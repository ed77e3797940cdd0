use moekit_kernels::KernelError;
use moekit_quant::{ActivationQuant, QuantError};
use moekit_routing::RoutingError;
use thiserror::Error;

/// What can go wrong in a fused MoE layer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum FusedMoeError {
    /// A configuration that describes no layer.
    #[error("layer configuration: {0}")]
    Config(String),
    /// A tensor of another shape.
    #[error("{what} has shape {got:?}, expected {expected}")]
    Shape {
        /// Which tensor.
        what: &'static str,
        /// Its shape.
        got: Vec<usize>,
        /// The shapes that would be right.
        expected: String,
    },
    /// A tensor of an element type that the layer does not take.
    #[error("the input is {got}, expected F32 or BF16")]
    Dtype {
        /// The type found.
        got: String,
    },
    /// More valid tokens than rows.
    #[error(
        "{num_valid} valid tokens in a batch of {num_tokens} rows, expected at most as many as rows"
    )]
    ValidTokens {
        /// Valid tokens, as the caller says.
        num_valid: usize,
        /// Rows of the batch.
        num_tokens: usize,
    },
    /// Dispatcher and routing table speak of different groups.
    #[error(
        "the dispatcher is rank {rank} of {num_ranks}, but the routing table has {table} ranks"
    )]
    Ranks {
        /// Rank of the dispatcher.
        rank: usize,
        /// Ranks of the dispatcher.
        num_ranks: usize,
        /// Ranks of the table.
        table: usize,
    },
    /// The routing table in force places other experts here than those whose weights are loaded.
    #[error(
        "routing table generation {generation} places experts {table:?} on rank {rank}, but the weights loaded there are those of experts {held:?}"
    )]
    StaleExperts {
        /// Generation of the table.
        generation: u64,
        /// This rank.
        rank: usize,
        /// Experts that the table places here.
        table: Vec<usize>,
        /// Experts whose weights are here.
        held: Vec<usize>,
    },
    /// Gradients do not cross ranks.
    #[error(
        "autodiff is enabled and the layer has {num_ranks} ranks: gradients do not cross ranks, use one rank or a tensor without autodiff"
    )]
    AutodiffAcrossRanks {
        /// Ranks of the group.
        num_ranks: usize,
    },
    /// Quantized activations have no gradient.
    #[error(
        "autodiff is enabled, but the activation quantization is `Emulate` and rounding has no gradient: use `Off`, or a tensor without autodiff"
    )]
    ActivationQuantAutodiff,
    /// Experts that are parts of one MLP do not see all features that share a scale.
    #[error(
        "the activation quantization is `Emulate`, but the {what} are parts of one MLP and cut the features that the input of its down projection has a scale for ({quant:?}): {instead}"
    )]
    ActivationQuantCut {
        /// Which experts.
        what: &'static str,
        /// The scheme of the down projection.
        quant: ActivationQuant,
        /// What would be right.
        instead: &'static str,
    },
    /// A routing of the user's own has no gradient.
    #[error(
        "autodiff is enabled, but the custom routing `{name}` does not say how its weights follow from the logits: implement `CustomRouting::weights`"
    )]
    NotDifferentiable {
        /// The routing.
        name: String,
    },
    /// A routing of the user's own gave an impossible answer.
    #[error("the custom routing `{name}` {message}")]
    CustomRouting {
        /// The routing.
        name: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A dispatcher failed, on this rank or another.
    #[error("dispatch: {0}")]
    Dispatch(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A tensor could not be read from its device.
    #[error("a tensor cannot be read from its device: {0}")]
    Device(String),
    /// A routing table or replica selector refused.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// A kernel refused.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// Packed weights that do not fit each other.
    #[error(transparent)]
    Quant(#[from] QuantError),
}

impl FusedMoeError {
    /// The error of a dispatcher.
    pub fn dispatch(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Dispatch(error.into())
    }

    pub(crate) fn shape(what: &'static str, got: &[usize], expected: impl std::fmt::Debug) -> Self {
        Self::Shape {
            what,
            got: got.to_vec(),
            expected: format!("{expected:?}"),
        }
    }
}
