//! Collectives that go well.

use std::sync::Arc;

use moekit_parallel::{Buffer, Communicator, CommunicatorExt, ReduceOp, Reducible};
use moekit_routing::Rank;

use super::steps::STEPS;

pub(super) fn every_step(comm: &Arc<dyn Communicator>) {
    for round in 0..60 {
        for step in STEPS {
            step.run(&**comm, round).unwrap();
        }
    }
}

pub(super) fn nothing(comm: &Arc<dyn Communicator>) {
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

pub(super) fn one_gives(comm: &Arc<dyn Communicator>) {
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

pub(super) fn reductions(comm: &Arc<dyn Communicator>) {
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
