//! What the ranks of a command are: threads of this process, or processes that `mpirun` started.

use std::sync::Arc;

use clap::ValueEnum;
use moekit::parallel::Communicator;
use serde::{Deserialize, Serialize};

use crate::error::Result;

/// What the ranks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CommOption {
    /// Threads of this process
    #[default]
    Threads,
    /// Processes that `mpirun` started
    Mpi,
}

/// Runs as one process of many; a failure on any of them ends them all.
#[cfg(feature = "mpi")]
pub(super) fn run_over_mpi(body: impl FnOnce(Arc<dyn Communicator>) -> Result<()>) -> Result<()> {
    use std::io::{self, Write};

    use moekit::parallel::{GroupError, MpiCommunicator, MpiGroup};

    use crate::error::CliError;

    let result = MpiGroup::run(
        |comm: MpiCommunicator| body(Arc::new(comm)),
        |error| {
            // In one piece, as mpirun mixes what processes write.
            let report = miette::Report::new(CliError::usage(error.to_string()));
            let text = format!("Error: {report:?}\n");
            // Without stderr there is nobody to tell.
            io::stderr().write_all(text.as_bytes()).ok();
        },
    );
    match result {
        Ok(()) => Ok(()),
        // No rank has run, so none has printed.
        Err(error @ GroupError::Transport { .. }) => Err(error.into()),
        Err(_) => MpiGroup::end_job(1),
    }
}

/// A command without MPI says how to get it.
#[cfg(not(feature = "mpi"))]
pub(super) fn run_over_mpi(_: impl FnOnce(Arc<dyn Communicator>) -> Result<()>) -> Result<()> {
    Err(crate::error::CliError::usage(
        "this moekit has no MPI: build it with `--features mpi`",
    ))
}

/// Says how many processes there are.
pub(super) fn count(processes: usize) -> String {
    match processes {
        1 => "1 process".to_owned(),
        more => format!("{more} processes"),
    }
}
