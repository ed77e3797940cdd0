//! What goes wrong is the same error on all ranks, and nobody waits for it.

use std::sync::Arc;
use std::thread;

use moekit_parallel::{Buffer, CommError, Communicator, CommunicatorExt, ElementType, ReduceOp};
use moekit_routing::Rank;

use super::again;
use super::steps::STEPS;

type Attempt = fn(&dyn Communicator) -> Result<(), CommError>;

const COLLECTIVES: [(&str, Attempt); 6] = [
    ("barrier", |comm| comm.barrier()),
    ("all_gather_v", |comm| {
        comm.all_gather_values(vec![1.0f32]).map(drop)
    }),
    ("all_to_all_v", |comm| {
        comm.all_to_all_v(Buffer::default(), &vec![0; comm.size()])
            .map(drop)
    }),
    ("all_reduce(sum of 2 f32)", |comm| {
        comm.all_reduce_values(vec![1.0f32; 2], ReduceOp::Sum)
            .map(drop)
    }),
    ("all_reduce(max of 2 f32)", |comm| {
        comm.all_reduce_values(vec![1.0f32; 2], ReduceOp::Max)
            .map(drop)
    }),
    ("all_reduce(sum of 3 u64)", |comm| {
        comm.all_reduce_values(vec![1u64; 3], ReduceOp::Sum)
            .map(drop)
    }),
];

pub(super) fn mismatch(comm: &Arc<dyn Communicator>) {
    let odd = comm.size() - 1;
    for (a, (a_name, _)) in COLLECTIVES.iter().enumerate() {
        for (b, (b_name, _)) in COLLECTIVES.iter().enumerate() {
            if odd == 0 || a == b {
                continue;
            }
            let group = again(&**comm);
            let chosen = if comm.rank().index() == odd { b } else { a };
            let expected = CommError::Mismatch {
                rank: Rank::new(0),
                call: (*a_name).to_owned(),
                other_rank: Rank::new(odd),
                other_call: (*b_name).to_owned(),
            };
            assert_eq!((COLLECTIVES[chosen].1)(&*group).unwrap_err(), expected);
            assert_eq!(
                group.barrier().unwrap_err(),
                expected,
                "the group has ended"
            );
        }
    }
}

pub(super) fn wrong_arguments(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let odd = size / 2;
    let too_many: Attempt = |comm| {
        let counts = vec![2; comm.size()];
        comm.all_to_all_values(vec![1u32; comm.size()], &counts)
            .map(drop)
    };
    let too_few: Attempt = |comm| {
        let counts = vec![0; comm.size() + 1];
        comm.all_to_all_values::<u32>(vec![], &counts).map(drop)
    };
    let no_values: Attempt = |comm| {
        let bytes = Buffer::from(vec![0u8; 9]);
        comm.all_reduce(bytes, ElementType::F64, ReduceOp::Sum)
            .map(drop)
    };
    let cases: [(Attempt, CommError); 3] = [
        (
            too_many,
            CommError::CountsSum {
                counts: vec![8; size],
                len: 4 * size,
            },
        ),
        (
            too_few,
            CommError::NumCounts {
                got: size + 1,
                size,
            },
        ),
        (
            no_values,
            CommError::ElementSize {
                len: 9,
                element_size: 8,
            },
        ),
    ];
    for (attempt, expected) in cases {
        let group = again(&**comm);
        if comm.rank().index() == odd {
            assert_eq!(attempt(&*group).unwrap_err(), expected);
        } else {
            let failed = CommError::PeerFailed {
                rank: Rank::new(odd),
                message: expected.to_string(),
            };
            assert_eq!(group.barrier().unwrap_err(), failed);
        }
    }
}

pub(super) fn overflow(comm: &Arc<dyn Communicator>) {
    if comm.size() == 1 {
        return;
    }
    let mut mine = vec![0; 2 * comm.size()];
    mine[1] = u64::MAX - comm.rank().index() as u64;
    mine[2 * comm.size() - 1] = u64::MAX;
    let expected = CommError::Overflow {
        index: 1,
        element: ElementType::U64,
    };
    let error = comm.all_reduce_values(mine, ReduceOp::Sum).unwrap_err();
    assert_eq!(error, expected);
    assert!(comm.barrier().is_err(), "the group has ended");
}

/// Before any step, between two of them, on any rank: all others hear the same.
pub(super) fn abort(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    for quitter in 0..size {
        for at in 0..2 * STEPS.len() {
            let group = again(&**comm);
            let me = comm.rank().index();
            for round in 0.. {
                if me == quitter && round == at {
                    group.abort("that is enough");
                    break;
                }
                let step = STEPS[round % STEPS.len()];
                let Err(error) = step.run(&*group, round) else {
                    continue;
                };
                let expected = CommError::PeerFailed {
                    rank: Rank::new(quitter),
                    message: "that is enough".to_owned(),
                };
                assert_eq!(error, expected);
                assert!(
                    round >= at.saturating_sub(1),
                    "a collective ends for all or none"
                );
                break;
            }
            for (_, attempt) in COLLECTIVES {
                assert!(matches!(
                    attempt(&*group),
                    Err(CommError::PeerFailed { .. })
                ));
            }
            let send = group.send(Rank::new(0), 0, Buffer::default());
            assert!(matches!(send, Err(CommError::PeerFailed { .. })));
        }
    }
}

pub(super) fn abort_from_thread(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    if size == 1 {
        return;
    }
    // The others may wait already when a second thread of the last rank aborts.
    if comm.rank().index() == size - 1 {
        thread::scope(|scope| scope.spawn(|| comm.abort("from beside")).join().unwrap());
    }
    let error = comm.barrier().unwrap_err();
    let expected = CommError::PeerFailed {
        rank: Rank::new(size - 1),
        message: "from beside".to_owned(),
    };
    assert_eq!(error, expected);
}
