use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use moekit_placement::PlacementError;
use moekit_routing::RoutingError;
use thiserror::Error;

/// What went wrong with a file, a workload or a simulation.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum EvalError {
    /// A file cannot be read or written.
    #[error("{}: {message}", .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        message: io::Error,
    },
    /// The name of a file says nothing about its format.
    #[error("{}: unknown load file extension {extension}; known are {known}", .path.display())]
    Extension {
        /// The file.
        path: PathBuf,
        /// Its extension, quoted, or that it has none.
        extension: String,
        /// The extensions that are known.
        known: String,
    },
    /// A file does not hold what its format asks for.
    #[error("{}: {message}", .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A file holds numbers that are no expert load.
    #[error("{}: {}{reason}", .path.display(), .step.map(|s| format!("step {s}: ")).unwrap_or_default())]
    Load {
        /// The file.
        path: PathBuf,
        /// The step of a trace.
        step: Option<usize>,
        /// What is wrong.
        reason: Box<PlacementError>,
    },
    /// Another engine cannot take a placement.
    #[error("{engine} takes a placement only with {rule}: {got}")]
    Engine {
        /// The engine.
        engine: &'static str,
        /// Its rule.
        rule: &'static str,
        /// How the placement breaks it.
        got: String,
    },
    /// A setting has a value that makes no sense.
    #[error("{what} is {got}, expected {expected}")]
    Setting {
        /// The setting.
        what: &'static str,
        /// Its value.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// A placement, load or strategy is invalid.
    #[error(transparent)]
    Placement(#[from] PlacementError),
    /// A routing table or a replica selector refuses.
    #[error(transparent)]
    Routing(#[from] RoutingError),
}

impl EvalError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |message| Self::Io {
            path: path.to_owned(),
            message,
        }
    }

    pub(crate) fn content(path: &Path, message: impl fmt::Display) -> Self {
        Self::Content {
            path: path.to_owned(),
            message: message.to_string(),
        }
    }

    pub(crate) fn setting(
        what: &'static str,
        got: impl fmt::Display,
        expected: impl Into<String>,
    ) -> Self {
        Self::Setting {
            what,
            got: got.to_string(),
            expected: expected.into(),
        }
    }
}
