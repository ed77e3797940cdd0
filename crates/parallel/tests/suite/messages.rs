//! Messages of one rank to another.

use std::sync::Arc;

use moekit_parallel::{Buffer, CommError, Communicator, CommunicatorExt, MAX_TAG};
use moekit_routing::Rank;

pub(super) fn order_and_tags(comm: &Arc<dyn Communicator>) {
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
pub(super) fn large_messages(comm: &Arc<dyn Communicator>) {
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

pub(super) fn unread_messages(comm: &Arc<dyn Communicator>) {
    for to in 0..comm.size() {
        comm.send_values(Rank::new(to), 9, vec![1u64; 100_000])
            .unwrap();
    }
    comm.barrier().unwrap();
}

pub(super) fn wrong_messages(comm: &Arc<dyn Communicator>) {
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
