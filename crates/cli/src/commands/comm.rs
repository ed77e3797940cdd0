//! What the ranks of a command are: threads of this process, processes that it starts, or those
//! that `mpirun` started.

use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::{env, process};

use clap::ValueEnum;
use moekit::parallel::{Communicator, GroupError, TcpCommunicator, TcpGroup};
use serde::{Deserialize, Serialize};

use crate::error::{CliError, Result};
use crate::output::note;

/// What the ranks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum CommOption {
    /// Threads of this process
    #[default]
    Threads,
    /// Processes that this one starts, over TCP
    Tcp,
    /// Processes that `mpirun` started
    Mpi,
}

/// Starts the processes of a group: this command again, each time as another rank.
///
/// # Arguments
///
/// - `output` - where stdout and stderr of the processes go.
pub(super) fn start_ranks(size: usize, output: fn() -> Stdio) -> Result<Vec<Child>> {
    let this = env::current_exe()
        .map_err(|e| CliError::usage(format!("this program has no path to start again: {e}")))?;
    let children = TcpGroup::spawn(size, |_| {
        let mut command = Command::new(&this);
        let command_line = command.args(env::args_os().skip(1));
        command_line
            .stdin(Stdio::null())
            .stdout(output())
            .stderr(output());
        command
    });
    Ok(children?)
}

/// Runs as one of the processes that were started; a failure on any of them ends them all.
pub(super) fn run_as_rank(body: impl FnOnce(Arc<dyn Communicator>) -> Result<()>) -> Result<()> {
    let result = TcpGroup::run(|comm: TcpCommunicator| body(Arc::new(comm)), print_failure);
    match result {
        Ok(()) => Ok(()),
        // No rank has run, so none has printed.
        Err(error @ GroupError::Transport { .. }) => Err(error.into()),
        Err(_) => process::exit(1),
    }
}

/// Runs as processes that this one starts and waits for.
///
/// # Arguments
///
/// - `size` - how many.
/// - `body` - what each does.
pub(super) fn run_over_tcp(
    size: usize,
    body: impl FnOnce(Arc<dyn Communicator>) -> Result<()>,
) -> Result<()> {
    if TcpGroup::is_rank() {
        return run_as_rank(body);
    }
    let mut all_well = true;
    for mut child in start_ranks(size, Stdio::inherit)? {
        let status = child
            .wait()
            .map_err(|e| CliError::usage(format!("a process cannot be waited for: {e}")))?;
        all_well &= status.success();
    }
    match all_well {
        true => Ok(()),
        // The one that failed first has said why.
        false => process::exit(1),
    }
}

/// Prints why a rank has failed, in one piece, as processes beside it print too.
fn print_failure(error: &GroupError) {
    let report = miette::Report::new(CliError::usage(error.to_string()));
    note(&format!("Error: {report:?}\n"));
}

/// Runs as one process of many; a failure on any of them ends them all.
#[cfg(feature = "mpi")]
pub(super) fn run_over_mpi(body: impl FnOnce(Arc<dyn Communicator>) -> Result<()>) -> Result<()> {
    use moekit::parallel::{MpiCommunicator, MpiGroup};

    let result = MpiGroup::run(|comm: MpiCommunicator| body(Arc::new(comm)), print_failure);
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
    Err(CliError::usage(
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
