//! What every communicator must do, whatever carries its messages.
//!
//! Each scenario runs on all ranks of a group of its own, which it may end.

#[cfg(feature = "mpi")]
#[allow(dead_code, reason = "only the tests over MPI start processes")]
pub(crate) mod mpirun;
pub(crate) mod steps;

use std::sync::Arc;
use std::thread;

use moekit_fused_moe::{ExpertOutputs, RoutedTokens, Rows, TokenDispatcher};
use moekit_parallel::{
    Buffer, CommError, Communicator, CommunicatorExt, ElementType, EpDispatcher, MAX_TAG, ReduceOp,
    Reducible,
};
use moekit_routing::{Placement, Rank, RoutingTable, Topology};

use steps::STEPS;

pub(crate) type Scenario = fn(&Arc<dyn Communicator>);

/// All scenarios, by name.
pub(crate) const SCENARIOS: [(&str, Scenario); 16] = [
    ("every step, many rounds", every_step),
    ("nothing at all is a message", nothing),
    ("one rank has everything, the others nothing", one_gives),
    (
        "reductions have the bits of a loop in rank order",
        reductions,
    ),
    ("messages keep their order and their tags", order_and_tags),
    ("large messages in both directions at once", large_messages),
    ("what was not asked for is in nobody's way", unread_messages),
    ("different collectives are an error on all ranks", mismatch),
    ("a wrong argument is an error on all ranks", wrong_arguments),
    ("a sum that overflows is an error on all ranks", overflow),
    ("an abort ends every call", abort),
    (
        "another thread can abort a rank that waits",
        abort_from_thread,
    ),
    (
        "a wrong argument of a message concerns one rank",
        wrong_messages,
    ),
    ("subgroups are numbered in the order given", subgroups),
    ("survivors go on in a smaller group", survivors),
    ("dispatch and combine, ranks without tokens too", dispatch),
];

fn ranks(members: impl IntoIterator<Item = usize>) -> Vec<Rank> {
    members.into_iter().map(Rank::new).collect()
}

fn every_step(comm: &Arc<dyn Communicator>) {
    for round in 0..60 {
        for step in STEPS {
            step.run(&**comm, round).unwrap();
        }
    }
}

fn nothing(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let none = comm
        .all_to_all_v(Buffer::default(), &vec![0; size])
        .unwrap();
    assert_eq!(none.counts(), vec![0; size]);
    let none = comm.all_gather_values::<f64>(vec![]).unwrap();
    assert_eq!(none.counts(), vec![0; size]);
    for op in [ReduceOp::Sum, ReduceOp::Max] {
        assert!(
            comm.all_reduce_values::<u64>(vec![], op)
                .unwrap()
                .is_empty()
        );
    }
    let next = Rank::new((comm.rank().index() + 1) % size);
    let last = Rank::new((comm.rank().index() + size - 1) % size);
    comm.send(next, 0, Buffer::default()).unwrap();
    assert!(comm.recv(last, 0).unwrap().is_empty());
}

fn one_gives(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    for giver in 0..size {
        let gives = comm.rank().index() == giver;
        let values = |n: usize| if gives { vec![0.5f32; n] } else { vec![] };
        let count = if gives { 3 } else { 0 };
        let scattered = comm.all_to_all_values(values(3 * size), &vec![count; size]);
        let gathered = comm.all_gather_values(values(3));
        for blocks in [scattered.unwrap(), gathered.unwrap()] {
            assert_eq!(*blocks.concat(), [0.5; 3]);
            assert_eq!(blocks.get(Rank::new(giver)).unwrap().len(), 3);
        }
    }
}

/// Numbers of very different size: any other order of a sum has other bits.
fn uneven(rank: usize, i: usize) -> f64 {
    let mixed = (rank * 7919 + i * 104_729) % 2_003;
    (mixed as f64 - 1001.0) * 10f64.powi((mixed % 13) as i32 - 6)
}

fn reductions(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    for len in [1, size - 1, size, size + 1, 1000] {
        reduce(
            &**comm,
            |rank| (0..len).map(|i| uneven(rank, i)).collect(),
            |a, b| a + b,
        );
        reduce(
            &**comm,
            |rank| (0..len).map(|i| uneven(rank, i) as f32).collect(),
            |a, b| a + b,
        );
        reduce(
            &**comm,
            |rank| (0..len).map(|i| (rank * i) as u64).collect(),
            |a, b| a + b,
        );
    }
    let mine = vec![uneven(comm.rank().index(), 3), f64::NAN, -0.0];
    let max = comm.all_reduce_values(mine, ReduceOp::Max).unwrap();
    let expected = (0..size).map(|r| uneven(r, 3)).fold(f64::MIN, f64::max);
    assert_eq!(max[0], expected);
    assert!(max[1].is_nan() && max[2].is_sign_negative());
}

fn reduce<T: Reducible>(
    comm: &dyn Communicator,
    values: impl Fn(usize) -> Vec<T>,
    add: impl Fn(T, T) -> T,
) {
    let mut expected = values(0);
    for rank in 1..comm.size() {
        for (sum, value) in expected.iter_mut().zip(values(rank)) {
            *sum = add(*sum, value);
        }
    }
    let mine = values(comm.rank().index());
    let sum = comm.all_reduce_values(mine, ReduceOp::Sum).unwrap();
    let bytes = |values: &[T]| bytemuck::cast_slice::<T, u8>(values).to_vec();
    assert_eq!(bytes(&sum), bytes(&expected));
}

fn order_and_tags(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let me = comm.rank().index();
    for to in 0..size {
        for value in 0..10u64 {
            let values = vec![value, me as u64];
            comm.send_values(Rank::new(to), (value % 2) as u32, values)
                .unwrap();
        }
        comm.send_values(Rank::new(to), MAX_TAG, vec![7u8]).unwrap();
    }
    for from in 0..size {
        assert_eq!(
            comm.recv_values::<u8>(Rank::new(from), MAX_TAG).unwrap(),
            [7]
        );
        for value in [1, 3, 0, 5, 2, 4, 7, 9, 6, 8] {
            let got = comm.recv_values::<u64>(Rank::new(from), (value % 2) as u32);
            assert_eq!(got.unwrap(), [value, from as u64]);
        }
    }
}

/// More than any transport sends before the receiver asks.
fn large_messages(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let me = comm.rank().index();
    let value = |from: usize, to: usize| (from * size + to) as u64;
    const LEN: usize = 300_000;
    for to in 0..size {
        comm.send_values(Rank::new(to), 1, vec![value(me, to); LEN])
            .unwrap();
    }
    let send = (0..size).flat_map(|to| vec![value(me, to); LEN]).collect();
    let blocks = comm.all_to_all_values(send, &vec![LEN; size]).unwrap();
    for from in (0..size).rev() {
        let expected = vec![value(from, me); LEN];
        assert!(comm.recv_values::<u64>(Rank::new(from), 1).unwrap() == expected);
        assert!(*blocks.get(Rank::new(from)).unwrap() == expected);
    }
}

fn unread_messages(comm: &Arc<dyn Communicator>) {
    for to in 0..comm.size() {
        comm.send_values(Rank::new(to), 9, vec![1u64; 100_000])
            .unwrap();
    }
    comm.barrier().unwrap();
}

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

/// A group of the same ranks that may end.
fn again(comm: &dyn Communicator) -> Arc<dyn Communicator> {
    comm.subgroup(&ranks(0..comm.size())).unwrap().unwrap()
}

fn mismatch(comm: &Arc<dyn Communicator>) {
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

fn wrong_arguments(comm: &Arc<dyn Communicator>) {
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

fn overflow(comm: &Arc<dyn Communicator>) {
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
fn abort(comm: &Arc<dyn Communicator>) {
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

fn abort_from_thread(comm: &Arc<dyn Communicator>) {
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

fn wrong_messages(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let nobody = Rank::new(size);
    let unknown = CommError::UnknownRank { rank: nobody, size };
    assert_eq!(
        comm.send(nobody, 0, Buffer::default()).unwrap_err(),
        unknown
    );
    assert_eq!(comm.recv(nobody, 0).unwrap_err(), unknown);
    let tag = MAX_TAG + 1;
    let wrong = CommError::Tag { tag, max: MAX_TAG };
    assert_eq!(
        comm.send(comm.rank(), tag, Buffer::default()).unwrap_err(),
        wrong
    );
    assert_eq!(comm.recv(comm.rank(), tag).unwrap_err(), wrong);
    comm.barrier().unwrap();
    // Nobody else can send it.
    let alone = comm.subgroup(&[comm.rank()]).unwrap().unwrap();
    assert!(matches!(
        alone.recv(Rank::new(0), 0),
        Err(CommError::Deadlock { .. })
    ));
}

fn subgroups(comm: &Arc<dyn Communicator>) {
    let size = comm.size();
    let me = comm.rank().index();
    // Backwards, without rank 0 unless it is alone.
    let members: Vec<usize> = (1.min(size - 1)..size).rev().collect();
    let group = comm.subgroup(&ranks(members.iter().copied())).unwrap();
    assert_eq!(group.is_some(), members.contains(&me));
    if let Some(group) = &group {
        for (round, step) in STEPS.into_iter().enumerate() {
            step.run(&**group, round).unwrap();
        }
        let all = group.all_gather_values(vec![me as u64]).unwrap();
        assert!(
            all.concat()
                .iter()
                .map(|&m| m as usize)
                .eq(members.iter().copied())
        );
        // Groups of groups, numbered as in the group.
        let last = group.subgroup(&ranks([group.size() - 1])).unwrap();
        assert_eq!(last.is_some(), group.rank().index() == group.size() - 1);
        if let Some(alone) = last {
            assert_eq!((alone.rank().index(), alone.size()), (0, 1));
            alone.barrier().unwrap();
        }
    }
    // Two groups of the same ranks, used by two threads at once.
    let (first, second) = (again(&**comm), again(&**comm));
    thread::scope(|scope| {
        scope.spawn(|| (0..40).for_each(|r| STEPS[r % 5].run(&*first, r).unwrap()));
        (0..60).for_each(|r| STEPS[(r + 2) % 5].run(&*second, r).unwrap());
    });
    let twice = comm.subgroup(&ranks([0, 0])).unwrap_err();
    assert_eq!(twice, CommError::DuplicateRank { rank: Rank::new(0) });
    assert!(comm.subgroup(&[]).unwrap().is_none());
    comm.barrier().unwrap();
}

/// One rank after the other gives up; those that are left make the next group from the one that
/// has ended.
fn survivors(comm: &Arc<dyn Communicator>) {
    let me = comm.rank().index();
    let mut group = Arc::clone(comm);
    for last in (1..comm.size()).rev() {
        if me == last {
            group.abort("lost");
            return;
        }
        let lost = CommError::PeerFailed {
            rank: Rank::new(last),
            message: "lost".to_owned(),
        };
        assert_eq!(group.barrier().unwrap_err(), lost);
        group = group.subgroup(&ranks(0..last)).unwrap().unwrap();
        let sum = group
            .all_reduce_values(vec![me as u64], ReduceOp::Sum)
            .unwrap();
        assert_eq!(sum[0] as usize, last * (last - 1) / 2);
    }
}

/// Expert `e` multiplies by `e + 1`; rank `r` has `r` tokens, so that rank 0 has none.
fn dispatch(comm: &Arc<dyn Communicator>) {
    const WIDTH: usize = 3;
    let size = comm.size();
    let experts = 2 * size + 1;
    let owners: Vec<Vec<usize>> = (0..size)
        .map(|rank| (0..experts).filter(|e| e % size == rank).collect())
        .collect();
    let placement = Placement::from_ranks(experts, &owners).unwrap();
    let table = RoutingTable::new(placement, Topology::new(size).unwrap(), 0, 5).unwrap();
    let me = comm.rank().index();
    let hidden: Vec<f32> = (0..me * WIDTH).map(|i| (i + me) as f32).collect();
    let ids: Vec<i64> = (0..2 * me)
        .map(|i| ((3 * i + me) % experts) as i64)
        .collect();
    let weights = vec![0.5f32; ids.len()];
    let dispatcher = EpDispatcher::new(Arc::clone(comm));
    let tokens = RoutedTokens::new(Rows::F32(&hidden), WIDTH, &ids, &weights, 2, &table).unwrap();
    let logical = |slot: i64| table.placement().physical_to_logical()[slot as usize].index();
    for per_slot in [false, true] {
        let dispatched = dispatcher.dispatch(&tokens).unwrap();
        let Rows::F32(rows) = dispatched.hidden.as_rows() else {
            panic!("f32 in, f32 out")
        };
        let local = table.local_to_global(comm.rank()).unwrap();
        let mut slots = Vec::new();
        for (row, (ids, weights)) in rows.chunks(WIDTH).zip(
            dispatched
                .local_ids
                .chunks(2)
                .zip(dispatched.weights.chunks(2)),
        ) {
            for (&id, &weight) in ids.iter().zip(weights) {
                let factor = match usize::try_from(id) {
                    Ok(id) => weight * (local[id].index() + 1) as f32,
                    Err(_) => 0.0,
                };
                slots.extend(row.iter().map(|x| factor * x));
            }
        }
        let outputs = match per_slot {
            true => ExpertOutputs::PerSlot(slots),
            false => ExpertOutputs::Summed(
                slots
                    .chunks(2 * WIDTH)
                    .flat_map(|two| (0..WIDTH).map(|i| two[i] + two[WIDTH + i]))
                    .collect(),
            ),
        };
        let output = dispatcher.combine(outputs, dispatched.handle).unwrap();
        let expected: Vec<f32> = (0..me * WIDTH)
            .map(|i| {
                let factor = |slot: usize| (logical(ids[slot]) + 1) as f32;
                let token = i / WIDTH;
                0.5 * hidden[i] * (factor(2 * token) + factor(2 * token + 1))
            })
            .collect();
        assert_eq!(output, expected);
    }
}
