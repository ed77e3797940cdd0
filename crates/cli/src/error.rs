use std::fmt::Display;
use std::path::Path;

use miette::Diagnostic;
use thiserror::Error;

/// What the command prints when it fails.
#[derive(Debug, Error, Diagnostic)]
pub(crate) enum CliError {
    #[error(transparent)]
    Placement(#[from] moekit::placement::PlacementError),
    #[error(transparent)]
    Routing(#[from] moekit::routing::RoutingError),
    #[error(transparent)]
    Plugin(#[from] moekit::plugin::PluginError),
    #[error(transparent)]
    Load(#[from] moekit::eval::EvalError),
    #[error(transparent)]
    Checkpoint(#[from] moekit::checkpoint::CheckpointError),
    #[error(transparent)]
    Quant(#[from] moekit::quant::QuantError),
    #[error(transparent)]
    Kernel(#[from] moekit::kernels::KernelError),
    #[error(transparent)]
    Layer(#[from] moekit::fused_moe::FusedMoeError),
    #[error(transparent)]
    Live(#[from] moekit::live::LiveError),
    #[error(transparent)]
    Comm(#[from] moekit::parallel::CommError),
    #[error(transparent)]
    Group(#[from] moekit::parallel::GroupError),
    #[error("{path}: {message}")]
    File { path: String, message: String },
    #[error("{0}")]
    Usage(String),
}

impl CliError {
    /// A file that cannot be read, written or understood.
    pub(crate) fn file(path: &Path, message: impl Display) -> Self {
        Self::File {
            path: path.display().to_string(),
            message: message.to_string(),
        }
    }

    /// A combination of flags that makes no sense.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::Usage(message.into())
    }
}

pub(crate) type Result<T, E = CliError> = std::result::Result<T, E>;
