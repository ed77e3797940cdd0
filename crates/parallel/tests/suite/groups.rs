//! Groups made of groups, and what a layer does with one.

use std::sync::Arc;
use std::thread;

use moekit_fused_moe::{ExpertOutputs, RoutedTokens, Rows, TokenDispatcher};
use moekit_parallel::{CommError, Communicator, CommunicatorExt, EpDispatcher, ReduceOp};
use moekit_routing::{Placement, Rank, RoutingTable, Topology};

use super::steps::STEPS;
use super::{again, ranks};

pub(super) fn subgroups(comm: &Arc<dyn Communicator>) {
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
pub(super) fn survivors(comm: &Arc<dyn Communicator>) {
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
pub(super) fn dispatch(comm: &Arc<dyn Communicator>) {
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
