//! The suite of communicators, with ranks as processes over TCP; and processes that are killed, of
//! which the others hear, and go on.
//!
//! The test starts itself again, with what to do as arguments.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod suite;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["rank", ref what @ ..] => rank::main(what),
        _ => job::main(),
    }
}

/// What one process does.
mod rank {
    use std::sync::Arc;

    use moekit_parallel::{
        CommError, Communicator, CommunicatorExt, RankPool, ReduceOp, TcpCommunicator, TcpGroup,
    };
    use moekit_routing::Rank;

    use crate::suite::process::{Outcome, fail, leave, suite};
    use crate::suite::steps::STEPS;
    use crate::suite::{again, job, ranks};

    pub(crate) fn main(what: &[&str]) {
        let body = |comm: TcpCommunicator| -> Outcome {
            let comm: Arc<dyn Communicator> = Arc::new(comm);
            match *what {
                ["suite"] => suite(&comm),
                ["leave"] => leave(&*comm),
                ["fail", way, at] => fail(&comm, way, at),
                ["killed", at] => killed(&*comm, at),
                ["pool", seed] => pool(&comm, seed.parse()?),
                _ => Err(format!("nothing to do: {what:?}").into()),
            }
        };
        let result = TcpGroup::run(body, |error| eprintln!("[on_failure] {error}"));
        if let Err(error) = result {
            println!("[returned] {error}");
            std::process::exit(3);
        }
    }

    /// Rank 1 is killed while the others are somewhere. They hear of it, and go on without it.
    fn killed(comm: &dyn Communicator, at: &str) -> Outcome {
        let size = comm.size();
        let group = again(comm);
        for round in 0..10 {
            STEPS[round % STEPS.len()].run(&*group, round)?;
        }
        let large = || group.all_to_all_values(vec![7u64; 400_000 * size], &vec![400_000; size]);
        if comm.rank().index() == 1 {
            match at {
                // While all send and receive.
                "large" => {
                    job::be_killed_soon();
                    while large().is_ok() {}
                }
                // The message before it arrives.
                "receive" => {
                    for to in (0..size).filter(|&to| to != 1) {
                        group.send_values(Rank::new(to), 4, vec![to as u64])?;
                    }
                }
                _ => {}
            }
            job::be_killed();
        }
        let error = match at {
            "large" => loop {
                if let Err(error) = large() {
                    break error;
                }
            },
            "barrier" => group.barrier().unwrap_err(),
            "world" => comm.barrier().unwrap_err(),
            "receive" => {
                let me = comm.rank().index() as u64;
                assert_eq!(group.recv_values::<u64>(Rank::new(1), 4)?, [me]);
                group.recv(Rank::new(1), 4).unwrap_err()
            }
            "subgroup" => loop {
                // It may be gone only after it has joined.
                match comm.subgroup(&ranks(0..size)) {
                    Ok(_) => {}
                    Err(error) => break error,
                }
            },
            _ => return Err(format!("no place {at}").into()),
        };
        let expected = CommError::PeerFailed {
            rank: Rank::new(1),
            message: "its process has ended".to_owned(),
        };
        assert_eq!(error, expected);
        assert!(comm.is_gone(Rank::new(1)));
        let others: Vec<usize> = (0..size).filter(|&rank| rank != 1).collect();
        // Messages between others go on, as long as no collective has needed it.
        if at != "world" {
            let me = comm.rank().index() as u64;
            for &to in &others {
                comm.send_values(Rank::new(to), 5, vec![me])?;
            }
            for &from in &others {
                let got = comm.recv_values::<u64>(Rank::new(from), 5)?;
                assert_eq!(got, [from as u64]);
            }
            comm.send(Rank::new(1), 5, vec![0u8; 100].into())?;
        }
        assert!(comm.barrier().is_err());
        let left = comm.subgroup(&ranks(others))?.unwrap();
        for round in 0..20 {
            STEPS[round % STEPS.len()].run(&*left, round)?;
        }
        println!("[went on]");
        Ok(())
    }

    /// Members are killed while they form groups, until one is left.
    fn pool(comm: &Arc<dyn Communicator>, seed: usize) -> Outcome {
        let (me, size) = (comm.rank().index(), comm.size());
        // The rank that is to survive, the one that is a spare, and when the others ask to be killed.
        let (survivor, spare) = (seed % (size - 1), size - 1);
        let pool = RankPool::new(comm.clone(), size - 1);
        if me == spare {
            assert!(pool.wait_for_invitation()?);
        }
        let member = pool.enter();
        let id = member.id();
        let mut asked = me == survivor;
        for round in 0.. {
            if !asked && round >= 3 + (me * 7 + seed) % 5 {
                job::be_killed_soon();
                asked = true;
            }
            if me == survivor && round == 2 {
                pool.invite(1)?;
            }
            let (members, group) = member.regroup()?;
            let sum = group.all_reduce_values(vec![id], ReduceOp::Sum);
            if let Ok(sum) = sum {
                assert_eq!(
                    sum,
                    [members.iter().sum::<u64>()],
                    "all are in the same group"
                );
            }
            if members == [survivor as u64] {
                break;
            }
        }
        assert_eq!(me, survivor);
        println!("[went on]");
        Ok(())
    }
}

/// What starts the processes and looks at how they end.
mod job {
    use crate::suite::SCENARIOS;
    use crate::suite::job::tcp;
    use crate::suite::process::{PLACES, WAYS, check_failure};

    pub(crate) fn main() {
        for size in [1, 2, 3, 4] {
            let ended = tcp(size, &["suite"]);
            for rank in &ended {
                assert!(rank.success, "{}{}", rank.stdout, rank.stderr);
            }
            assert_eq!(ended[0].stdout.matches(" ... ok").count(), SCENARIOS.len());
            println!("the suite on {size} processes ... ok");
        }
        for size in [2, 4] {
            for rank in tcp(size, &["leave"]) {
                assert!(rank.success, "{}", rank.stderr);
            }
            println!("leave on {size} processes ... ok");
        }
        for size in [2, 4] {
            for way in WAYS {
                for at in PLACES {
                    let ended = tcp(size, &["fail", way, at]);
                    let stderr: String = ended.iter().map(|rank| rank.stderr.as_str()).collect();
                    let context = format!("{way} at {at} on {size} processes");
                    assert!(ended.iter().all(|rank| !rank.success), "{context}");
                    check_failure(size, way, &stderr, &context);
                }
            }
        }
        for size in [2, 3, 4] {
            for at in ["barrier", "world", "receive", "subgroup", "large"] {
                survivors_go_on(&["killed", at], size, |rank| rank != 1);
            }
        }
        for seed in 0..12 {
            survivors_go_on(&["pool", &seed.to_string()], 5, |rank| rank == seed % 4);
        }
    }

    fn survivors_go_on(what: &[&str], size: usize, survives: impl Fn(usize) -> bool) {
        for (rank, ended) in tcp(size, what).into_iter().enumerate() {
            let context = format!("{what:?}, rank {rank} of {size}: {}", ended.stderr);
            assert_eq!(ended.success, survives(rank), "{context}");
            let went_on = ended.stdout.contains("[went on]");
            assert_eq!(went_on, survives(rank), "{context}");
        }
        println!("{what:?} on {size} processes ... ok");
    }
}
