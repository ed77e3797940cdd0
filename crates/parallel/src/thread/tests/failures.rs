//! Ranks that fail, panic or leave: the others wake up and hear why.

use std::error::Error;
use std::panic::resume_unwind;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::thread;

use moekit_routing::Rank;
use thiserror::Error;

use super::{STEPS, Step, on_ranks};
use crate::watchdog::watched;
use crate::{Buffer, CommError, Communicator, CommunicatorExt, GroupError, ThreadGroup};

/// How a rank goes away.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Way {
    Panic,
    Error,
    Return,
    Abort,
}

const WAYS: [Way; 4] = [Way::Panic, Way::Error, Way::Return, Way::Abort];

#[derive(Debug, Error)]
#[error("layer 3 is broken")]
struct Broken(#[source] std::num::ParseIntError);

fn broken() -> Broken {
    Broken("x".parse::<u8>().unwrap_err())
}

/// Every rank runs `steps` again and again; `quitter` goes away before step `at`. Returns the
/// result of the group and the error of every other rank with the number of steps it has done.
#[allow(clippy::type_complexity)]
fn run_until(
    size: usize,
    quitter: usize,
    at: usize,
    way: Way,
    steps: Vec<Step>,
) -> (Result<Vec<()>, GroupError>, Vec<(usize, usize, CommError)>) {
    watched(move || {
        let seen = Mutex::new(Vec::new());
        let result = ThreadGroup::run(size, |comm| -> Result<(), Box<dyn Error + Send + Sync>> {
            for (round, step) in steps.iter().cycle().enumerate() {
                let me = comm.rank().index();
                if me == quitter && round == at {
                    match way {
                        Way::Panic => resume_unwind(Box::new("out of luck")), // a quiet panic
                        Way::Error => return Err(Box::new(broken())),
                        Way::Return => return Ok(()),
                        Way::Abort => return Err(comm.abort("that is enough").into()),
                    }
                }
                if let Err(error) = step.run(&comm, round) {
                    seen.lock().unwrap().push((me, round, error.clone()));
                    return Err(error.into());
                }
            }
            Ok(())
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort_by_key(|(rank, ..)| *rank);
        (result, seen)
    })
}

fn expected_message(way: Way) -> &'static str {
    match way {
        Way::Panic => "panicked: out of luck",
        Way::Error => "layer 3 is broken: invalid digit found in string",
        Way::Abort => "that is enough",
        Way::Return => "",
    }
}

#[test]
fn every_way_to_go_wakes_every_wait() {
    for size in [2, 3, 5, 8] {
        for step in STEPS {
            for way in WAYS {
                let quitter = size / 2;
                let (result, seen) = run_until(size, quitter, 3, way, vec![step]);

                let others: Vec<usize> = (0..size).filter(|&r| r != quitter).collect();
                assert_eq!(seen.iter().map(|s| s.0).collect::<Vec<_>>(), others);
                check_errors(step, way, quitter, &seen);

                let text = result.unwrap_err().to_string();
                match way {
                    Way::Panic => {
                        assert_eq!(
                            text,
                            format!("rank {quitter} of {size} panicked: out of luck")
                        );
                    }
                    Way::Return => {
                        assert!(text.contains("failed: rank "), "{text}");
                        assert!(text.contains("has returned, but "), "{text}");
                    }
                    _ => assert_eq!(
                        text,
                        format!("rank {quitter} of {size} failed: {}", expected_message(way))
                    ),
                }
            }
        }
    }
}

fn check_errors(step: Step, way: Way, quitter: usize, seen: &[(usize, usize, CommError)]) {
    for (rank, round, error) in seen {
        // A collective ends for all or for none; in a ring the ranks drift apart.
        if step != Step::Ring {
            assert_eq!(*round, 3, "rank {rank}: {error}");
        }
        match error {
            CommError::PeerFailed { rank, message } if way != Way::Return => {
                assert_eq!(rank.index(), quitter);
                assert_eq!(message, expected_message(way));
            }
            CommError::PeerReturned { rank, .. } if way == Way::Return => {
                assert_eq!(rank.index(), quitter);
            }
            // The neighbour of the rank that left fails in turn.
            CommError::PeerFailed { message, .. } if step == Step::Ring => {
                assert!(
                    message.contains("has returned, but recv(from "),
                    "{message}"
                );
            }
            other => panic!("{way:?} in {step:?}, rank {rank}: {other}"),
        }
    }
}

#[test]
fn messages_sent_before_a_failure_arrive() {
    for way in [Way::Panic, Way::Error, Way::Return] {
        let error = watched(move || {
            let result = ThreadGroup::run(2, |comm| {
                if comm.rank().index() == 1 {
                    comm.send_values(Rank::new(0), 0, vec![1.0f32, 2.0])?;
                    return match way {
                        Way::Panic => resume_unwind(Box::new(7u8)),
                        Way::Error => Err(comm.abort("gone")),
                        _ => Ok(()),
                    };
                }
                assert_eq!(comm.recv_values::<f32>(Rank::new(1), 0)?, [1.0, 2.0]);
                comm.recv(Rank::new(1), 0).map(drop)
            });
            result.unwrap_err().to_string()
        });
        let expected = match way {
            Way::Panic => "rank 1 of 2 panicked: (a value without a text)",
            Way::Error => "rank 1 of 2 failed: gone",
            _ => "rank 0 of 2 failed: rank 1 has returned, but recv(from 1, tag 0) still needs it",
        };
        assert_eq!(error, expected);
    }
}

#[test]
fn a_group_that_has_ended_takes_no_further_call() {
    for size in [1, 2, 3, 8] {
        on_ranks(size, move |comm| {
            let message = "rank 0 has had enough";
            let ended = CommError::PeerFailed {
                rank: Rank::new(0),
                message: message.to_owned(),
            };
            if comm.rank().index() == 0 {
                assert_eq!(comm.abort(message), ended);
            } else {
                assert_eq!(comm.recv(Rank::new(0), 0).unwrap_err(), ended);
            }
            assert_eq!(comm.abort("too late"), ended);
            for step in STEPS {
                assert_eq!(step.run(&comm, 0).unwrap_err(), ended);
            }
            let to_self = comm.send(comm.rank(), 0, Buffer::default());
            assert_eq!(to_self.unwrap_err(), ended);
        });
    }
}

#[test]
fn another_thread_can_abort_a_rank_that_waits() {
    let (finish, finished) = channel();
    let finished = Mutex::new(finished);
    on_ranks(2, move |comm| {
        if comm.rank().index() == 1 {
            // Neither sends nor returns before rank 0 is through: only the abort can help it.
            finished.lock().unwrap().recv().unwrap();
            return;
        }
        let aborted = CommError::PeerFailed {
            rank: Rank::new(0),
            message: "by the watchdog".to_owned(),
        };
        thread::scope(|scope| {
            scope.spawn(|| assert_eq!(comm.abort("by the watchdog"), aborted));
            assert_eq!(comm.recv(Rank::new(1), 0).unwrap_err(), aborted);
        });
        finish.send(()).unwrap();
    });
}

#[test]
fn a_communicator_that_outlives_its_rank_refuses_every_call() {
    watched(|| {
        let kept = ThreadGroup::run(2, |comm| Ok::<_, CommError>(Arc::new(comm))).unwrap();
        let comm: Arc<dyn Communicator> = kept[1].clone();
        let error = comm.send(Rank::new(0), 0, Buffer::default()).unwrap_err();
        assert!(matches!(&error, CommError::PeerReturned { rank, .. } if rank.index() == 1));
        assert!(comm.recv(Rank::new(0), 0).is_err());
        assert!(comm.barrier().is_err());
    });
}

#[test]
fn an_empty_group_is_refused() {
    let result = ThreadGroup::run(0, |_| Ok::<(), CommError>(()));
    assert!(matches!(result, Err(GroupError::Empty)));
}

#[test]
fn the_error_of_the_rank_can_be_downcast() {
    let result = watched(|| {
        ThreadGroup::run(3, |comm| -> Result<(), Box<dyn Error + Send + Sync>> {
            if comm.rank().index() == 1 {
                return Err(Box::new(broken()));
            }
            Ok(comm.barrier()?)
        })
    });
    match result {
        Err(GroupError::RankFailed {
            rank, size, error, ..
        }) => {
            assert_eq!((rank.index(), size), (1, 3));
            assert!(error.downcast_ref::<Broken>().is_some());
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn work_without_communication_needs_nobody() {
    let squares = on_ranks(8, |comm| {
        thread::current()
            .name()
            .map(str::to_owned)
            .zip(Some(comm.rank().raw().pow(2)))
    });
    let expected: Vec<_> = (0..8).map(|r| Some((format!("rank {r}"), r * r))).collect();
    assert_eq!(squares, expected);
}
