//! Calls that do not fit together: an error on all ranks, with both names.

use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;

use moekit_routing::Rank;

use super::{SIZES, on_ranks};
use crate::{
    Buffer, CommError, Communicator, CommunicatorExt, ElementType, MAX_TAG, ReduceOp,
    ThreadCommunicator,
};

type Attempt = fn(&ThreadCommunicator) -> Result<(), CommError>;

const COLLECTIVES: [(&str, Attempt); 7] = [
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
    ("all_reduce(sum of 3 f32)", |comm| {
        comm.all_reduce_values(vec![1.0f32; 3], ReduceOp::Sum)
            .map(drop)
    }),
    ("all_reduce(max of 2 f32)", |comm| {
        comm.all_reduce_values(vec![1.0f32; 2], ReduceOp::Max)
            .map(drop)
    }),
    ("all_reduce(sum of 2 u64)", |comm| {
        comm.all_reduce_values(vec![1u64; 2], ReduceOp::Sum)
            .map(drop)
    }),
];

#[test]
fn different_collectives_are_an_error_on_all_ranks() {
    for size in [2, 3, 5, 8] {
        for (a, (a_name, _)) in COLLECTIVES.iter().enumerate() {
            for (b, (b_name, _)) in COLLECTIVES.iter().enumerate() {
                let odd = size - 1; // the rank that calls b
                let errors = on_ranks(size, move |comm| {
                    let chosen = if comm.rank().index() == odd { b } else { a };
                    (COLLECTIVES[chosen].1)(&comm).err()
                });
                let expected = (a != b).then(|| CommError::Mismatch {
                    rank: Rank::new(0),
                    call: (*a_name).to_owned(),
                    other_rank: Rank::new(odd),
                    other_call: (*b_name).to_owned(),
                });
                assert_eq!(errors, vec![expected; size]);
            }
        }
    }
}

/// The error of each rank, all of which must be a deadlock that names these waits.
fn assert_deadlock(errors: &[CommError], waits: &[&str]) {
    for error in errors {
        let text = error.to_string();
        assert!(matches!(error, CommError::Deadlock { .. }), "{text}");
        assert!(waits.iter().all(|wait| text.contains(wait)), "{text}");
    }
}

#[test]
fn nothing_comes_to_a_rank_that_waits_for_itself() {
    for size in SIZES {
        let errors = on_ranks(size, |comm| comm.recv(comm.rank(), 1).unwrap_err());
        assert_deadlock(&errors, &["waits in recv(from "]);
    }
}

#[test]
fn receives_in_a_circle() {
    for size in [2, 3, 5, 8] {
        let errors = on_ranks(size, |comm| {
            let next = (comm.rank().index() + 1) % comm.size();
            comm.recv(Rank::new(next), 4).unwrap_err()
        });
        let waits: Vec<String> = (0..size)
            .map(|r| format!("rank {r} waits in recv(from {}, tag 4)", (r + 1) % size))
            .collect();
        assert_deadlock(
            &errors,
            &waits.iter().map(String::as_str).collect::<Vec<_>>(),
        );
    }
}

#[test]
fn a_message_with_another_tag_does_not_end_a_receive() {
    for size in [2, 3, 5, 8] {
        let errors = on_ranks(size, |comm| match comm.rank().index() {
            0 => comm.recv(Rank::new(1), 7).unwrap_err(),
            1 => {
                comm.send_values(Rank::new(0), 8, vec![1u8]).unwrap();
                comm.barrier().unwrap_err()
            }
            _ => comm.barrier().unwrap_err(),
        });
        assert_deadlock(
            &errors,
            &[
                "rank 0 waits in recv(from 1, tag 7)",
                "rank 1 waits in barrier",
            ],
        );
    }
}

#[test]
fn a_wrong_argument_of_a_collective_is_an_error_on_all_ranks() {
    let attempts: [(Attempt, CommError); 4] = [
        (
            |comm| comm.all_to_all_values(vec![1u32; 3], &[3]).map(drop),
            CommError::NumCounts { got: 1, size: 3 },
        ),
        (
            |comm| comm.all_to_all_values(vec![1u32; 3], &[1, 1, 2]).map(drop),
            CommError::CountsSum {
                counts: vec![4, 4, 8],
                len: 12,
            },
        ),
        (
            |comm| {
                comm.all_to_all_values(vec![1u32; 3], &[usize::MAX, 4, 3])
                    .map(drop)
            },
            CommError::CountsSum {
                counts: vec![usize::MAX, 16, 12],
                len: 12,
            },
        ),
        (
            |comm| {
                let bytes = Buffer::from(vec![0u8; 9]);
                comm.all_reduce(bytes, ElementType::F64, ReduceOp::Sum)
                    .map(drop)
            },
            CommError::ElementSize {
                len: 9,
                element_size: 8,
            },
        ),
    ];
    for (attempt, expected) in attempts {
        let errors = on_ranks(3, move |comm| match comm.rank().index() {
            1 => attempt(&comm).unwrap_err(),
            _ => comm.barrier().unwrap_err(),
        });
        let others = CommError::PeerFailed {
            rank: Rank::new(1),
            message: expected.to_string(),
        };
        assert_eq!(errors, [others.clone(), expected, others]);
    }
}

#[test]
fn a_sum_that_overflows_is_an_error_on_all_ranks() {
    let errors = on_ranks(3, |comm| {
        let mine = vec![0, u64::MAX / 2];
        comm.all_reduce_values(mine, ReduceOp::Sum).unwrap_err()
    });
    let overflow = CommError::Overflow {
        index: 1,
        element: ElementType::U64,
    };
    assert_eq!(errors, vec![overflow; 3]);
}

#[test]
fn a_wrong_argument_of_a_message_concerns_this_rank_alone() {
    for size in SIZES {
        on_ranks(size, |comm| {
            let size = comm.size();
            let nobody = Rank::new(size);
            let unknown = CommError::UnknownRank { rank: nobody, size };
            assert_eq!(
                comm.send(nobody, 0, Buffer::default()).unwrap_err(),
                unknown
            );
            assert_eq!(comm.recv(nobody, 0).unwrap_err(), unknown);
            let tag = MAX_TAG + 1;
            let too_large = CommError::Tag { tag, max: MAX_TAG };
            assert_eq!(
                comm.send(comm.rank(), tag, Buffer::default()).unwrap_err(),
                too_large
            );
            assert_eq!(comm.recv(comm.rank(), tag).unwrap_err(), too_large);
            comm.barrier().unwrap();
        });
    }
}

#[test]
fn another_type_is_an_error_where_it_is_read() {
    on_ranks(2, |comm| {
        let bytes = vec![0u8; 6];
        let blocks = comm.all_gather_v(bytes.into()).unwrap();
        let not_whole = CommError::ElementSize {
            len: 6,
            element_size: 4,
        };
        assert_eq!(blocks.cast::<f32>().unwrap_err(), not_whole);
        comm.send_values(comm.rank(), 0, vec![0u16; 3]).unwrap();
        assert_eq!(
            comm.recv_values::<f32>(comm.rank(), 0).unwrap_err(),
            not_whole
        );
        comm.barrier().unwrap();
    });
}

#[test]
fn two_calls_at_once_on_one_rank_are_refused() {
    let (tell, told) = channel();
    let told = Mutex::new(told);
    on_ranks(2, move |comm| {
        if comm.rank().index() == 1 {
            // Not a call of the group, so rank 0 waits in at most one call of its own.
            told.lock().unwrap().recv().unwrap();
            comm.send_values(Rank::new(0), 0, vec![0u32]).unwrap();
            comm.send_values(Rank::new(0), 1, vec![1u32]).unwrap();
            return;
        }
        let receive = |tag: u32| match comm.recv_values::<u32>(Rank::new(1), tag) {
            Ok(values) => {
                assert_eq!(values, [tag]);
                true
            }
            Err(error) => {
                assert!(matches!(error, CommError::Concurrent { .. }), "{error}");
                tell.send(()).unwrap();
                false
            }
        };
        let received = thread::scope(|scope| {
            let other = scope.spawn(|| receive(0));
            [receive(1), other.join().unwrap()]
        });
        assert!(received[0] != received[1], "one receives, one is refused");
    });
}
