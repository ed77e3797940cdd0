//! What a process of a job does.

use std::error::Error;
use std::sync::Arc;

use moekit_parallel::{CommError, Communicator, CommunicatorExt};
use moekit_routing::Rank;

use super::{SCENARIOS, again, job};

pub(crate) type Outcome = Result<(), Box<dyn Error + Send + Sync>>;

/// All scenarios, each on a group of its own.
pub(crate) fn suite(comm: &Arc<dyn Communicator>) -> Outcome {
    for (name, scenario) in SCENARIOS {
        let group = again(&**comm);
        scenario(&group);
        drop(group);
        comm.barrier()?;
        if comm.rank().index() == 0 {
            println!("{name} ... ok");
        }
    }
    Ok(())
}

/// Who drops its end of a group is gone for the others.
pub(crate) fn leave(comm: &dyn Communicator) -> Outcome {
    let group = again(comm);
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
    assert!(group.is_gone(Rank::new(1)) && !comm.is_gone(Rank::new(1)));
    if comm.rank().index() == 0 {
        assert_eq!(group.recv_values::<u64>(Rank::new(1), 3)?, [8]);
    }
    comm.barrier()?;
    Ok(())
}

/// Ways in which a rank fails.
pub(crate) const WAYS: [&str; 3] = ["error", "panic", "abort"];

/// Where the others are when a rank fails.
pub(crate) const PLACES: [&str; 5] = ["barrier", "world", "receive", "returned", "subgroup"];

/// What the rank that fails says.
pub(crate) const MESSAGE: &str = "expert 7 of layer 3 is missing";

/// Rank 1 fails in some way while the others are somewhere.
pub(crate) fn fail(comm: &Arc<dyn Communicator>, way: &str, at: &str) -> Outcome {
    let group = again(&**comm);
    for _ in 0..20 {
        group.all_gather_values(vec![1u8; 3])?;
    }
    if comm.rank().index() == 1 {
        match way {
            "error" => return Err(MESSAGE.into()),
            "panic" => panic!("{MESSAGE}"),
            "abort" => return Err(group.abort(MESSAGE).into()),
            "die" => {
                eprintln!("{MESSAGE}");
                std::process::abort();
            }
            "killed" => job::be_killed(),
            _ => return Err(format!("no way {way}").into()),
        }
    }
    match at {
        "barrier" => group.barrier()?,
        "world" => comm.barrier()?,
        "receive" => drop(group.recv(Rank::new(1), 4)?),
        "returned" => return Ok(()),
        "subgroup" => drop(comm.subgroup(&super::ranks(0..comm.size()))?),
        "busy" => loop {
            std::hint::spin_loop();
        },
        _ => return Err(format!("no place {at}").into()),
    }
    Err("the others must not go on".into())
}

/// Checks the outcome of [`fail`], of the job as a whole.
pub(crate) fn check_failure(size: usize, way: &str, stderr: &str, context: &str) {
    assert!(stderr.contains(MESSAGE), "{context}: {stderr}");
    if way == "abort" {
        // It ends the subgroup; that it is the end of the job too, each rank finds by itself.
        assert!(stderr.contains("[on_failure] rank "), "{context}");
    } else if way != "die" {
        let reports = stderr.matches("[on_failure] ").count();
        assert_eq!(reports, 1, "{context}: {stderr}");
        let verb = if way == "panic" { "panicked" } else { "failed" };
        let report = format!("[on_failure] rank 1 of {size} {verb}: {MESSAGE}");
        assert!(stderr.contains(&report), "{context}: {stderr}");
    }
    println!("{context} ... ok");
}
