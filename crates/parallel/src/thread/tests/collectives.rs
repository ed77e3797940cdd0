//! Every collective against a model without threads.

use half::bf16;
use moekit_routing::Rank;
use proptest::prelude::*;

use super::{SIZES, STEPS, on_ranks};
use crate::{Buffer, Communicator, CommunicatorExt, ReduceOp, Reducible};

#[test]
fn every_step_on_every_size() {
    for size in SIZES {
        on_ranks(size, |comm| {
            for round in 0..12 {
                for step in STEPS {
                    step.run(&comm, round).unwrap();
                }
            }
        });
    }
}

#[test]
fn ranks_know_who_they_are() {
    for size in SIZES {
        let seen = on_ranks(size, |comm| (comm.rank().index(), comm.size()));
        assert_eq!(seen, (0..size).map(|r| (r, size)).collect::<Vec<_>>());
    }
}

#[test]
fn nothing_at_all_is_a_message() {
    for size in SIZES {
        on_ranks(size, move |comm| {
            let none = comm
                .all_to_all_v(Buffer::default(), &vec![0; size])
                .unwrap();
            assert_eq!(none.counts(), vec![0; size]);
            assert!(none.concat().is_empty());
            let none = comm.all_gather_values::<f64>(vec![]).unwrap();
            assert_eq!(none.counts(), vec![0; size]);
            for op in [ReduceOp::Sum, ReduceOp::Max] {
                assert!(
                    comm.all_reduce_values::<u64>(vec![], op)
                        .unwrap()
                        .is_empty()
                );
            }
            comm.send(comm.rank(), 0, Buffer::default()).unwrap();
            assert!(comm.recv(comm.rank(), 0).unwrap().is_empty());
        });
    }
}

#[test]
fn one_rank_has_everything_the_others_nothing() {
    for size in SIZES {
        for giver in 0..size {
            on_ranks(size, move |comm| {
                let gives = comm.rank().index() == giver;
                let values = |n: usize| if gives { vec![bf16::ONE; n] } else { vec![] };
                let count = if gives { 3 } else { 0 };
                let to_all = comm
                    .all_to_all_values(values(3 * size), &vec![count; size])
                    .unwrap();
                let gathered = comm.all_gather_values(values(3)).unwrap();
                for blocks in [to_all, gathered] {
                    assert_eq!(*blocks.concat(), [bf16::ONE; 3]);
                    assert_eq!(blocks.get(Rank::new(giver)).unwrap().len(), 3);
                }
            });
        }
    }
}

#[test]
fn memory_travels_without_a_copy() {
    let ranks = on_ranks(3, |comm| {
        let values = vec![comm.rank().raw(); 6];
        let sent = values.as_ptr().addr();
        let blocks = comm.all_to_all_values(values, &[1, 2, 3]).unwrap();
        let received: Vec<usize> = blocks.iter().map(|block| block.as_ptr().addr()).collect();
        comm.barrier().unwrap(); // keeps the senders' memory where it is until all have looked
        (sent, received)
    });
    for (to, (_, received)) in ranks.iter().enumerate() {
        for (from, (sent, _)) in ranks.iter().enumerate() {
            let offset: usize = (1..=to).sum();
            assert_eq!(received[from], sent + offset * size_of::<i64>());
        }
    }
}

#[test]
fn messages_keep_their_order_and_their_tags() {
    on_ranks(2, |comm| {
        let peer = Rank::new(1 - comm.rank().index());
        for value in 0..10u64 {
            comm.send_values(peer, (value % 2) as u32, vec![value])
                .unwrap();
        }
        for value in [1, 3, 0, 5, 2, 4, 7, 9, 6, 8] {
            let got: Vec<u64> = comm.recv_values(peer, (value % 2) as u32).unwrap();
            assert_eq!(got, [value]);
        }
    });
}

#[test]
fn a_message_to_oneself_and_one_to_nobody() {
    on_ranks(2, |comm| {
        comm.send_values(comm.rank(), 5, vec![1u8]).unwrap();
        comm.send_values(Rank::new(1), 6, vec![2u8]).unwrap(); // never received
        assert_eq!(comm.recv_values::<u8>(comm.rank(), 5).unwrap(), [1]);
    });
}

fn bits<T: Reducible>(ranks: Vec<Vec<T>>, op: ReduceOp) -> Vec<Vec<u8>> {
    on_ranks(ranks.len(), move |comm| {
        let mine = ranks[comm.rank().index()].clone();
        bytemuck::cast_slice(&comm.all_reduce_values(mine, op).unwrap()).to_vec()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn all_to_all_and_all_gather_of_any_counts(
        counts in (1usize..=8).prop_flat_map(|n| {
            prop::collection::vec(prop::collection::vec(prop_oneof![Just(0), 0usize..40], n), n)
        }),
    ) {
        let size = counts.len();
        let value = |from: usize, to: usize, i: usize| (from * 64 + to * 8 + i) as u16;
        let given = counts.clone();
        let received = on_ranks(size, move |comm| {
            let me = comm.rank().index();
            let mine = &given[me];
            let send: Vec<u16> = (0..size)
                .flat_map(|to| (0..mine[to]).map(move |i| value(me, to, i)))
                .collect();
            let blocks = comm.all_to_all_values(send.clone(), mine).unwrap();
            let gathered = comm.all_gather_values(send).unwrap();
            (blocks.counts(), blocks.concat().into_owned(), gathered.concat().into_owned())
        });
        let from_to = |from: usize, to: usize| (0..counts[from][to]).map(move |i| value(from, to, i));
        let all: Vec<u16> = (0..size)
            .flat_map(|from| (0..size).flat_map(move |to| from_to(from, to)))
            .collect();
        for (to, (got_counts, got, gathered)) in received.into_iter().enumerate() {
            prop_assert_eq!(got_counts, (0..size).map(|from| counts[from][to]).collect::<Vec<_>>());
            let expected: Vec<u16> = (0..size).flat_map(|from| from_to(from, to)).collect();
            prop_assert_eq!(got, expected);
            prop_assert_eq!(&gathered, &all);
        }
    }

    #[test]
    fn all_reduce_has_the_bits_of_a_loop_in_rank_order(
        ranks in (1usize..=8, 0usize..50).prop_flat_map(|(n, len)| {
            prop::collection::vec(prop::collection::vec(-1e6f64..1e6, len), n)
        }),
    ) {
        let narrow: Vec<Vec<f32>> = ranks.iter().map(|r| r.iter().map(|&x| x as f32).collect()).collect();
        let whole: Vec<Vec<u64>> = ranks.iter().map(|r| r.iter().map(|x| x.abs() as u64).collect()).collect();

        let (mut sum, mut max, mut total) = (narrow[0].clone(), ranks[0].clone(), whole[0].clone());
        for rank in 1..ranks.len() {
            for i in 0..sum.len() {
                sum[i] += narrow[rank][i];
                max[i] = max[i].max(ranks[rank][i]);
                total[i] += whole[rank][i];
            }
        }
        for _ in 0..2 {
            for got in bits(narrow.clone(), ReduceOp::Sum) {
                prop_assert_eq!(got.as_slice(), bytemuck::cast_slice::<f32, u8>(&sum));
            }
            for got in bits(ranks.clone(), ReduceOp::Max) {
                prop_assert_eq!(got.as_slice(), bytemuck::cast_slice::<f64, u8>(&max));
            }
            for got in bits(whole.clone(), ReduceOp::Sum) {
                prop_assert_eq!(got.as_slice(), bytemuck::cast_slice::<u64, u8>(&total));
            }
        }
    }
}
