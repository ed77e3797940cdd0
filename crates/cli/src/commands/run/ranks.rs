//! Ranks as threads of this process, or this process as one rank of many.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use moekit::fused_moe::FusedMoeError;
use moekit::parallel::{CommError, Communicator, CommunicatorExt, TcpGroup, ThreadGroup};
use moekit::placement::ModelPlacement;
use moekit::routing::Rank;

use super::RunOptions;
use super::execute::RankRun;
use crate::commands::comm;
pub(super) use crate::commands::comm::CommOption;
use crate::error::{CliError, Result};

/// The ranks that this process runs.
pub(super) enum Ranks {
    /// All of them, each a thread.
    Threads,
    /// One, over a communicator.
    Process(Arc<dyn Communicator>),
}

impl Ranks {
    /// Runs `body` on every rank. The process of rank 0 gets what came of all of them, in order.
    pub(super) fn run(
        &self,
        size: usize,
        body: impl Fn(Arc<dyn Communicator>) -> Result<RankRun, FusedMoeError> + Sync,
    ) -> Result<Option<Vec<RankRun>>> {
        match self {
            Self::Threads => {
                let runs = ThreadGroup::run(size, |comm| body(Arc::new(comm)))?;
                Ok(Some(runs))
            }
            Self::Process(comm) => {
                let own = body(Arc::clone(comm))?;
                collect(&**comm, own).map_err(|error| FusedMoeError::dispatch(error).into())
            }
        }
    }

    /// Whether this process prints and writes the results.
    pub(super) fn reports(&self) -> bool {
        match self {
            Self::Threads => true,
            Self::Process(comm) => comm.rank().index() == 0,
        }
    }

    /// Whether all processes have made the same plan, each for itself.
    pub(super) fn check_same_plan(&self, plan: &ModelPlacement) -> Result<()> {
        let Self::Process(comm) = self else {
            return Ok(());
        };
        let mut hasher = DefaultHasher::new();
        for layer in plan.layers() {
            layer.physical_to_logical().hash(&mut hasher);
            layer.rank_offsets().hash(&mut hasher);
        }
        let plans = comm
            .all_gather_values(vec![hasher.finish()])
            .map_err(FusedMoeError::dispatch)?;
        let plans = plans.concat();
        match plans.iter().position(|&plan| plan != plans[0]) {
            None => Ok(()),
            Some(rank) => Err(CliError::usage(format!(
                "ranks 0 and {rank} have made different plans: all processes need the same \
                 checkpoint, configuration and load"
            ))),
        }
    }
}

/// Sends what came of this rank to rank 0.
fn collect(comm: &dyn Communicator, own: RankRun) -> Result<Option<Vec<RankRun>>, CommError> {
    const TAG: u32 = 0;
    let root = Rank::new(0);
    if comm.rank() != root {
        comm.send_values(root, TAG, own.output)?;
        comm.send_values(root, TAG, own.topk_ids)?;
        comm.send_values(root, TAG, own.topk_weights)?;
        comm.send_values(root, TAG, own.physical_ids)?;
        comm.send_values(root, TAG, vec![own.time.as_secs_f64()])?;
        return Ok(None);
    }
    let mut all = vec![own];
    for rank in (1..comm.size()).map(Rank::new) {
        all.push(RankRun {
            output: comm.recv_values(rank, TAG)?,
            topk_ids: comm.recv_values(rank, TAG)?,
            topk_weights: comm.recv_values(rank, TAG)?,
            physical_ids: comm.recv_values(rank, TAG)?,
            time: Duration::from_secs_f64(comm.recv_values(rank, TAG)?.iter().sum()),
        });
    }
    Ok(Some(all))
}

/// Runs as one process of many.
pub(super) fn run_over_mpi(mut options: RunOptions) -> Result<()> {
    comm::run_over_mpi(|comm| {
        check_size(&*comm, options.group.ranks)?;
        options.group.ranks = Some(comm.size());
        options.execute(&Ranks::Process(comm))
    })
}

/// Runs as processes that this one starts. What all of them would refuse it refuses itself, so that
/// the message comes once.
pub(super) fn run_over_tcp(options: &RunOptions) -> Result<()> {
    let size = options.group.topology()?.num_ranks();
    if !TcpGroup::is_rank() {
        options.prepare()?;
    }
    comm::run_over_tcp(size, |comm| options.execute(&Ranks::Process(comm)))
}

/// Rank 0 alone refuses, so that the message comes once.
fn check_size(comm: &dyn Communicator, ranks: Option<usize>) -> Result<()> {
    match ranks {
        Some(ranks) if ranks != comm.size() && comm.rank().index() == 0 => {
            Err(CliError::usage(format!(
                "`--ranks {ranks}`, but MPI has started {}: leave it out, or start as many \
                 processes (`mpirun -n {ranks}`)",
                comm::count(comm.size())
            )))
        }
        _ => Ok(comm.barrier().map_err(FusedMoeError::dispatch)?),
    }
}
