//! The suite of communicators, with ranks as processes over MPI; and jobs that end because a rank
//! fails.
//!
//! The test starts itself again under `mpirun`, with what to do as arguments.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

#[cfg(feature = "mpi")]
mod suite;

#[cfg(not(feature = "mpi"))]
fn main() {
    println!("tests over MPI skipped: they need the feature `mpi`, and an MPI library to build it");
}

#[cfg(feature = "mpi")]
fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["rank", ref what @ ..] => rank::main(what),
        _ => job::main(),
    }
}

/// What one process does.
#[cfg(feature = "mpi")]
mod rank {
    use std::io::Write;
    use std::sync::Arc;

    use moekit_parallel::{Buffer, CommError, Communicator, MpiCommunicator, MpiGroup};
    use moekit_routing::Rank;

    use crate::suite::again;
    use crate::suite::process::{Outcome, fail, leave, suite};

    pub(crate) fn main(what: &[&str]) {
        let body = |comm: MpiCommunicator| -> Outcome {
            let comm: Arc<dyn Communicator> = Arc::new(comm);
            match *what {
                ["suite"] => suite(&comm),
                ["too-large"] => too_large(&*comm),
                ["leave"] => leave(&*comm),
                ["fail", way, at] => fail(&comm, way, at),
                _ => Err(format!("nothing to do: {what:?}").into()),
            }
        };
        // In one piece, as mpirun mixes what processes write.
        let result = MpiGroup::run(body, |error| {
            let line = format!("[on_failure] {error}\n");
            std::io::stderr().write_all(line.as_bytes()).unwrap();
        });
        if let Err(error) = result {
            println!("[returned] {error}");
            MpiGroup::end_job(3);
        }
    }

    /// Memory that nobody touches costs nothing.
    fn too_large(comm: &dyn Communicator) -> Outcome {
        let size = comm.size();
        let len = (1usize << 31) + 8;
        let expected = CommError::TooLarge {
            len,
            max: i32::MAX as usize,
        };
        let error = comm
            .send(Rank::new(0), 0, vec![0u8; len].into())
            .unwrap_err();
        assert_eq!(error, expected);
        for gather in [true, false] {
            let group = again(comm);
            let error = if comm.rank().index() == 0 {
                let buffer = Buffer::from(vec![0u8; len]);
                let mut counts = vec![0; size];
                counts[size - 1] = len;
                match gather {
                    true => group.all_gather_v(buffer).unwrap_err(),
                    false => group.all_to_all_v(buffer, &counts).unwrap_err(),
                }
            } else {
                group.barrier().unwrap_err()
            };
            match comm.rank().index() {
                0 => assert_eq!(error, expected),
                _ => assert!(error.to_string().contains(&len.to_string()), "{error}"),
            }
        }
        // Each sends less than the limit, but what rank 0 would receive is beyond it.
        let group = again(comm);
        let part = (1usize << 31) / size + 8;
        let mut counts = vec![0; size];
        counts[0] = part;
        let error = group
            .all_to_all_v(vec![0u8; part].into(), &counts)
            .unwrap_err();
        assert!(
            error.to_string().contains(&(part * size).to_string()),
            "{error}"
        );
        comm.barrier()?;
        Ok(())
    }
}

/// What starts the processes and looks at how they end.
#[cfg(feature = "mpi")]
mod job {
    use crate::suite::SCENARIOS;
    use crate::suite::job::mpirun;
    use crate::suite::process::{PLACES, WAYS, check_failure};

    pub(crate) fn main() {
        for size in [1, 2, 3, 4] {
            let ended = mpirun(size, &["suite"]);
            print!("{}", ended.stdout);
            assert!(ended.success, "{size} processes: {}", ended.stderr);
            let passed = ended.stdout.matches(" ... ok").count();
            assert_eq!(passed, SCENARIOS.len());
            println!("the suite on {size} processes ... ok");
        }
        for (size, what) in [
            (2, "too-large"),
            (3, "too-large"),
            (2, "leave"),
            (4, "leave"),
        ] {
            let ended = mpirun(size, &[what]);
            assert!(ended.success, "{what}: {}", ended.stderr);
            println!("{what} on {size} processes ... ok");
        }
        for size in [2, 4] {
            for way in WAYS.into_iter().chain(["die"]) {
                // MPI ends a process also while it computes.
                for at in PLACES.into_iter().chain(["busy"]) {
                    failing_job(size, way, at);
                }
            }
        }
    }

    /// The job ends, with a status that says so and the message of the rank that failed.
    fn failing_job(size: usize, way: &str, at: &str) {
        let ended = mpirun(size, &["fail", way, at]);
        let context = format!("{way} at {at} on {size} processes");
        assert!(!ended.success, "{context}: a success");
        check_failure(size, way, &ended.stderr, &context);
    }
}
