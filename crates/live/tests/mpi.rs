//! Experts move every few steps between processes, processes come, leave and are lost to the group,
//! and no output shows it; over MPI.
//!
//! The test starts itself again under `mpirun`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "mpi")]
mod common;
#[cfg(feature = "mpi")]
#[path = "../../parallel/tests/suite/job.rs"]
mod job;

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
    use moekit_parallel::{MpiCommunicator, MpiGroup};

    use crate::common::processes::{NUM_PASSED, every_checkpoint};
    use crate::job::mpirun;

    pub(crate) fn jobs() {
        for size in [2, 3, 4] {
            let ended = mpirun(size, &[]);
            print!("{}", ended.stdout);
            assert!(ended.success, "{size} processes: {}", ended.stderr);
            assert_eq!(ended.stdout.matches(" ... ok").count(), NUM_PASSED);
        }
    }

    pub(crate) fn rank() {
        let body = |comm: MpiCommunicator| every_checkpoint(&comm);
        if MpiGroup::run(body, |error| eprintln!("{error}")).is_err() {
            MpiGroup::end_job(1);
        }
    }
}
