//! Experts move every few steps between processes, and no output shows it.
//!
//! The test starts itself again under `mpirun`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "mpi")]
mod common;
#[cfg(feature = "mpi")]
#[path = "../../parallel/tests/suite/mpirun.rs"]
mod mpirun;

#[cfg(not(feature = "mpi"))]
fn main() {
    println!("tests over MPI skipped: they need the feature `mpi`, and an MPI library to build it");
}

#[cfg(feature = "mpi")]
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("rank") => over_mpi::rank(),
        _ => over_mpi::jobs(),
    }
}

#[cfg(feature = "mpi")]
mod over_mpi {
    use std::sync::Arc;

    use moekit_fused_moe::Reduction;
    use moekit_live::{FixedGroup, LiveConfig};
    use moekit_parallel::{CommError, Communicator, MpiCommunicator, MpiGroup};
    use moekit_routing::Rank;

    use crate::common::fixtures::model;
    use crate::common::{Model, Rotate, run};
    use crate::mpirun;

    const CHECKPOINTS: [&str; 4] = [
        "qwen3_moe-bf16",
        "qwen3_moe-fp8-block64x32",
        "gpt_oss-mxfp4",
        "kimi_k2-ct-w4a16-g32",
    ];

    pub(crate) fn jobs() {
        for size in [2, 3, 4] {
            let ended = mpirun::run(size, &[]);
            print!("{}", ended.stdout);
            assert!(ended.success, "{size} processes: {}", ended.stderr);
            assert_eq!(
                ended.stdout.matches(" ... ok").count(),
                2 * CHECKPOINTS.len()
            );
        }
    }

    pub(crate) fn rank() {
        let body = |comm: MpiCommunicator| -> Result<(), CommError> {
            for name in CHECKPOINTS {
                for (reduction, exact) in [(Reduction::PerSlot, true), (Reduction::PerRank, false)]
                {
                    moves(&comm, &model(name, reduction, false), exact)?;
                    if comm.rank().index() == 0 {
                        println!("{name}, {reduction:?}, {} processes ... ok", comm.size());
                    }
                }
            }
            Ok(())
        };
        if MpiGroup::run(body, |error| eprintln!("{error}")).is_err() {
            MpiGroup::end_job(1);
        }
    }

    /// Every output is compared with that of one rank, while experts move.
    fn moves(comm: &MpiCommunicator, model: &Model, exact: bool) -> Result<(), CommError> {
        let all: Vec<Rank> = (0..comm.size()).map(Rank::new).collect();
        let group = comm.subgroup(&all)?.unwrap();
        let config = LiveConfig::new(Arc::new(Rotate { by: 3 }))
            .with_interval(2)
            .with_redundant_experts(1)
            .with_bytes_per_step(40_000)
            .with_synchronous(true);
        let live = model.start(FixedGroup::new(group), comm.size(), config);
        let member = comm.rank().index() as u64;
        let seen = run(model, live.unwrap(), member, 16, exact);
        assert!(
            seen.errors.is_empty() && seen.failures().is_empty(),
            "{seen:?}"
        );
        assert!(seen.commits() >= 2, "{seen:?}");
        comm.barrier()
    }
}
