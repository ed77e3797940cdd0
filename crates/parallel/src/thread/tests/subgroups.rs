//! Groups of some ranks of a group.

use std::panic::resume_unwind;
use std::sync::{Arc, Mutex};

use moekit_routing::Rank;

use super::{STEPS, on_ranks};
use crate::watchdog::watched;
use crate::{CommError, Communicator, CommunicatorExt, ThreadGroup};

fn ranks(members: &[usize]) -> Vec<Rank> {
    members.iter().copied().map(Rank::new).collect()
}

#[test]
fn numbered_in_the_order_given_and_none_elsewhere() {
    let places = on_ranks(4, |comm| {
        let group = comm.subgroup(&ranks(&[3, 1, 2])).unwrap()?;
        for (round, step) in STEPS.into_iter().enumerate() {
            step.run(&*group, round).unwrap();
        }
        let worlds = group
            .all_gather_values(vec![comm.rank().index() as u64])
            .unwrap();
        assert_eq!(*worlds.concat(), [3, 1, 2]);
        Some((group.rank().index(), group.size()))
    });
    assert_eq!(places, [None, Some((1, 3)), Some((2, 3)), Some((0, 3))]);
}

#[test]
fn ranks_must_exist_and_be_named_once() {
    on_ranks(2, |comm| {
        assert_eq!(
            comm.subgroup(&ranks(&[0, 2])).unwrap_err(),
            CommError::UnknownRank {
                rank: Rank::new(2),
                size: 2
            }
        );
        assert_eq!(
            comm.subgroup(&ranks(&[0, 1, 0])).unwrap_err(),
            CommError::DuplicateRank { rank: Rank::new(0) }
        );
        assert!(comm.subgroup(&[]).unwrap().is_none());
        comm.barrier().unwrap();
    });
}

/// The same list twice makes two groups; calls of one neither match nor hold up those of the other.
#[test]
fn groups_are_independent() {
    on_ranks(3, |comm| {
        let all = ranks(&[0, 1, 2]);
        let first = comm.subgroup(&all).unwrap().unwrap();
        let second = comm.subgroup(&all).unwrap().unwrap();
        // Ranks use the groups in different order, which one group would report as a mismatch.
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..50 {
                    STEPS[round % STEPS.len()].run(&*first, round).unwrap();
                }
            });
            for round in 0..70 {
                STEPS[(round + 2) % STEPS.len()]
                    .run(&*second, round)
                    .unwrap();
            }
        });
        second.abort("enough of this one");
        assert!(second.barrier().is_err());
        first.barrier().unwrap();
        comm.barrier().unwrap();
    });
}

#[test]
fn groups_of_groups() {
    on_ranks(5, |comm| {
        let Some(group) = comm.subgroup(&ranks(&[4, 2, 0])).unwrap() else {
            return;
        };
        let Some(pair) = group.subgroup(&ranks(&[2, 0])).unwrap() else {
            return;
        };
        let worlds = pair.all_gather_values(vec![comm.rank().index() as u64]);
        assert_eq!(*worlds.unwrap().concat(), [0, 4]);
    });
}

/// A rank dies while the others are in a subgroup, or before they make one; what is left of them
/// goes on, again and again, down to one.
#[test]
fn survivors_go_on_in_smaller_groups() {
    for size in [2, 3, 5] {
        watched(move || {
            let sums = Mutex::new(Vec::new());
            let result = ThreadGroup::run(size, |comm| -> Result<(), CommError> {
                let me = comm.rank().index();
                let mut group: Arc<dyn Communicator> = comm
                    .subgroup(&ranks(&(0..size).collect::<Vec<_>>()))?
                    .unwrap();
                for last in (1..size).rev() {
                    group.all_reduce_values(vec![1u64], crate::ReduceOp::Sum)?;
                    if me == last {
                        resume_unwind(Box::new("killed"));
                    }
                    match group.barrier().unwrap_err() {
                        CommError::PeerFailed { rank, message } => {
                            assert_eq!((rank.index(), &*message), (last, "panicked: killed"));
                        }
                        other => panic!("{other}"),
                    }
                    let survivors: Vec<usize> = (0..last).collect();
                    group = comm.subgroup(&ranks(&survivors))?.unwrap();
                    let sum = group.all_reduce_values(vec![me as u64 + 1], crate::ReduceOp::Sum)?;
                    sums.lock().unwrap().push((last, me, sum[0]));
                }
                Ok(())
            });
            assert!(result.is_err(), "ranks have panicked");
            let sums = sums.into_inner().unwrap();
            assert_eq!(sums.len(), size * (size - 1) / 2);
            for (last, _, sum) in sums {
                assert_eq!(sum as usize, last * (last + 1) / 2);
            }
        });
    }
}

/// Whoever is named and gone, by a failure or by returning, is reported and never waited for.
#[test]
fn a_group_with_a_rank_that_is_gone_cannot_run() {
    for fails in [true, false] {
        let result = watched(move || {
            ThreadGroup::run(3, |comm| {
                let all = ranks(&[2, 1, 0]);
                if comm.rank().index() == 1 {
                    return match fails {
                        true => Err(CommError::Unsupported { what: "luck" }),
                        false => Ok(()),
                    };
                }
                let group = comm.subgroup(&all)?.unwrap();
                match group.barrier().unwrap_err() {
                    CommError::PeerFailed { rank, message } if fails => {
                        assert_eq!(rank.index(), 1);
                        assert_eq!(message, "this transport has no luck");
                    }
                    CommError::PeerReturned { rank, .. } if !fails => {
                        assert_eq!(rank.index(), 1);
                    }
                    // The other one has seen it first and is gone too.
                    CommError::PeerReturned { .. } => {}
                    other => panic!("{other}"),
                }
                Ok(())
            })
        });
        assert_eq!(result.is_err(), fails);
    }
}
