//! The suite of communicators, with ranks as processes; and jobs that end because a rank fails.
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
    use std::error::Error;
    use std::io::Write;
    use std::sync::Arc;

    use moekit_parallel::{
        Buffer, CommError, Communicator, CommunicatorExt, MpiCommunicator, MpiGroup,
    };
    use moekit_routing::Rank;

    use crate::suite::SCENARIOS;

    type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

    pub(crate) fn main(what: &[&str]) {
        let body = |comm: MpiCommunicator| -> Outcome {
            match *what {
                ["suite"] => suite(&comm),
                ["too-large"] => too_large(&comm),
                ["leave"] => leave(&comm),
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

    fn all(comm: &dyn Communicator) -> Vec<Rank> {
        (0..comm.size()).map(Rank::new).collect()
    }

    fn suite(comm: &MpiCommunicator) -> Outcome {
        for (name, scenario) in SCENARIOS {
            let group = comm.subgroup(&all(comm))?.unwrap();
            scenario(&group);
            drop(group);
            comm.barrier()?;
            if comm.rank().index() == 0 {
                println!("{name} ... ok");
            }
        }
        Ok(())
    }

    /// Memory that nobody touches costs nothing.
    fn too_large(comm: &MpiCommunicator) -> Outcome {
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
            let group = comm.subgroup(&all(comm))?.unwrap();
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
        let group = comm.subgroup(&all(comm))?.unwrap();
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

    /// Who drops its end of a group is gone for the others.
    fn leave(comm: &MpiCommunicator) -> Outcome {
        let group = comm.subgroup(&all(comm))?.unwrap();
        if comm.rank().index() == 1 {
            group.send_values(Rank::new(0), 3, vec![8u64])?;
            drop(group);
            comm.barrier()?;
            return Ok(());
        }
        match group.barrier().unwrap_err() {
            CommError::PeerReturned { rank, .. } => assert_eq!(rank.index(), 1),
            other => panic!("{other}"),
        }
        if comm.rank().index() == 0 {
            assert_eq!(group.recv_values::<u64>(Rank::new(1), 3)?, [8]);
        }
        comm.barrier()?;
        Ok(())
    }

    /// Rank 1 fails in some way while the others are somewhere.
    fn fail(comm: &MpiCommunicator, way: &str, at: &str) -> Outcome {
        let group: Arc<dyn Communicator> = comm.subgroup(&all(comm))?.unwrap();
        for _ in 0..20 {
            group.all_gather_values(vec![1u8; 3])?;
        }
        if comm.rank().index() == 1 {
            match way {
                "error" => return Err("expert 7 of layer 3 is missing".into()),
                "panic" => panic!("expert 7 of layer 3 is missing"),
                "abort" => return Err(group.abort("expert 7 of layer 3 is missing").into()),
                "die" => {
                    eprintln!("expert 7 of layer 3 is missing");
                    std::process::abort();
                }
                _ => return Err(format!("no way {way}").into()),
            }
        }
        match at {
            "barrier" => group.barrier()?,
            "world" => comm.barrier()?,
            "receive" => drop(group.recv(Rank::new(1), 4)?),
            "returned" => return Ok(()),
            "subgroup" => drop(comm.subgroup(&all(comm))?),
            "busy" => loop {
                std::hint::spin_loop();
            },
            _ => return Err(format!("no place {at}").into()),
        }
        Err("the others must not go on".into())
    }
}

/// What starts the processes and looks at how they end.
#[cfg(feature = "mpi")]
mod job {
    use crate::suite::mpirun::run;

    pub(crate) fn main() {
        for size in [1, 2, 3, 4] {
            let ended = run(size, &["suite"]);
            print!("{}", ended.stdout);
            assert!(ended.success, "{size} processes: {}", ended.stderr);
            let passed = ended.stdout.matches(" ... ok").count();
            assert_eq!(passed, crate::suite::SCENARIOS.len());
            println!("the suite on {size} processes ... ok");
        }
        for (size, what) in [
            (2, "too-large"),
            (3, "too-large"),
            (2, "leave"),
            (4, "leave"),
        ] {
            let ended = run(size, &[what]);
            assert!(ended.success, "{what}: {}", ended.stderr);
            println!("{what} on {size} processes ... ok");
        }
        for size in [2, 4] {
            for way in ["error", "panic", "abort", "die"] {
                for at in [
                    "barrier", "world", "receive", "returned", "subgroup", "busy",
                ] {
                    failing_job(size, way, at);
                }
            }
        }
    }

    /// The job ends, with a status that says so and the message of the rank that failed.
    fn failing_job(size: usize, way: &str, at: &str) {
        let ended = run(size, &["fail", way, at]);
        let context = format!("{way} at {at} on {size} processes");
        assert!(!ended.success, "{context}: a success");
        let message = "expert 7 of layer 3 is missing";
        assert!(
            ended.stderr.contains(message),
            "{context}: {}",
            ended.stderr
        );
        if way == "abort" {
            // It ends the subgroup; that it is the end of the job too, each rank finds by itself.
            assert!(ended.stderr.contains("[on_failure] rank "), "{context}");
        } else if way != "die" {
            let reports = ended.stderr.matches("[on_failure] ").count();
            assert_eq!(reports, 1, "{context}: {}", ended.stderr);
            let verb = if way == "panic" { "panicked" } else { "failed" };
            let report = format!("[on_failure] rank 1 of {size} {verb}: {message}");
            assert!(
                ended.stderr.contains(&report),
                "{context}: {}",
                ended.stderr
            );
        }
        println!("{context} ... ok");
    }
}
