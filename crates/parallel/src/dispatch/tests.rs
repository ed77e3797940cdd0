use moekit_fused_moe::Rows;
use moekit_routing::{Placement, RoutingTable, Topology};
use proptest::prelude::*;

use super::*;
use crate::ThreadGroup;

const WIDTH: usize = 3;

/// Expert `e` (a logical one) maps a row to `(e + 1) * row`.
fn table(ranks: &[Vec<usize>], experts: usize) -> RoutingTable {
    let placement = Placement::from_ranks(experts, ranks).unwrap();
    RoutingTable::new(placement, Topology::new(ranks.len()).unwrap(), 0, 3).unwrap()
}

/// A batch of one rank: rows, physical ids, weights.
#[derive(Clone, Debug)]
struct Batch {
    hidden: Vec<f32>,
    ids: Vec<i64>,
    weights: Vec<f32>,
}

fn expected(batch: &Batch, table: &RoutingTable, top_k: usize) -> Vec<f32> {
    let mut output = vec![0.0; batch.hidden.len()];
    for (slot, (&id, &weight)) in batch.ids.iter().zip(&batch.weights).enumerate() {
        let token = slot / top_k;
        if id >= 0 {
            let expert = table.placement().physical_to_logical()[id as usize].index();
            let row = token * WIDTH..(token + 1) * WIDTH;
            for (sum, x) in output[row.clone()].iter_mut().zip(&batch.hidden[row]) {
                *sum += weight * (expert + 1) as f32 * x;
            }
        }
    }
    output
}

fn run(
    dispatcher: &EpDispatcher,
    batch: &Batch,
    table: &RoutingTable,
    top_k: usize,
    per_slot: bool,
) -> Result<Vec<f32>, FusedMoeError> {
    let rows = Rows::F32(&batch.hidden);
    let tokens = RoutedTokens::new(rows, WIDTH, &batch.ids, &batch.weights, top_k, table)?;
    let dispatched = dispatcher.dispatch(&tokens)?;
    let Rows::F32(hidden) = dispatched.hidden.as_rows() else {
        panic!("f32 in, f32 out")
    };
    let local = table.local_to_global(dispatcher.rank()).unwrap();
    let mut outputs = Vec::new();
    for (row, slots) in hidden.chunks(WIDTH).zip(
        dispatched
            .local_ids
            .chunks(top_k)
            .zip(dispatched.weights.chunks(top_k)),
    ) {
        let slot = |(&id, &weight): (&i64, &f32)| match usize::try_from(id) {
            Ok(id) => row
                .iter()
                .map(|x| weight * (local[id].index() + 1) as f32 * x)
                .collect(),
            Err(_) => vec![0.0; WIDTH],
        };
        let slots: Vec<Vec<f32>> = slots.0.iter().zip(slots.1).map(slot).collect();
        if per_slot {
            outputs.extend(slots.concat());
        } else {
            outputs.extend((0..WIDTH).map(|i| slots.iter().map(|s| s[i]).sum::<f32>()));
        }
    }
    let outputs = match per_slot {
        true => ExpertOutputs::PerSlot(outputs),
        false => ExpertOutputs::Summed(outputs),
    };
    dispatcher.combine(outputs, dispatched.handle)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whole numbers, so that sums are exact in any order.
    #[test]
    fn every_token_comes_back_with_its_sum(
        top_k in 1usize..4,
        extra in prop::collection::vec(prop::collection::vec(0usize..5, 0..3), 1..6),
        tokens in prop::collection::vec(0usize..5, 6),
        seed in prop::collection::vec(-9i32..9, 200),
        per_slot: bool,
    ) {
        let mut ranks = extra;
        (0..5).for_each(|e| { let r = e % ranks.len(); ranks[r].push(e) });
        let table = table(&ranks, 5);
        let slots = table.num_physical_experts() as i64;
        let mut numbers = seed.iter().cycle().copied();
        let mut next = || numbers.next().unwrap();
        let batches: Vec<Batch> = (0..ranks.len()).map(|rank| {
            let tokens = tokens[rank];
            Batch {
                hidden: (0..tokens * WIDTH).map(|_| next() as f32).collect(),
                ids: (0..tokens * top_k).map(|_| i64::from(next()).rem_euclid(slots + 1) - 1).collect(),
                weights: (0..tokens * top_k).map(|_| next() as f32).collect(),
            }
        }).collect();
        let outputs = ThreadGroup::run(ranks.len(), |comm| {
            let batch = &batches[comm.rank().index()];
            run(&EpDispatcher::new(Arc::new(comm)), batch, &table, top_k, per_slot)
        }).unwrap();
        for (output, batch) in outputs.iter().zip(&batches) {
            prop_assert_eq!(output, &expected(batch, &table, top_k));
        }
    }
}

#[test]
fn ranks_that_disagree_get_an_error() {
    let ranks = [vec![0], vec![1]];
    let error = ThreadGroup::run(2, |comm| {
        let generation = comm.rank().index() as u64;
        let placement = Placement::from_ranks(2, &ranks).unwrap();
        let table = RoutingTable::new(placement, Topology::new(2).unwrap(), 0, generation).unwrap();
        let batch = Batch {
            hidden: vec![1.0; WIDTH],
            ids: vec![0],
            weights: vec![1.0],
        };
        run(&EpDispatcher::new(Arc::new(comm)), &batch, &table, 1, false)
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("routing table of generation 1, this rank with 0")
            || error.contains("generation 0, this rank with 1"),
        "{error}"
    );
}

#[test]
fn an_aborted_pass_wakes_the_others() {
    let table = table(&[vec![0], vec![1]], 2);
    let error = ThreadGroup::run(2, |comm| {
        let rank = comm.rank().index();
        let dispatcher = EpDispatcher::new(Arc::new(comm));
        let batch = Batch {
            hidden: vec![1.0; WIDTH],
            ids: vec![rank as i64 * 7],
            weights: vec![1.0],
        };
        let result = run(&dispatcher, &batch, &table, 1, false);
        if let Err(error) = &result {
            dispatcher.abort(error);
        }
        result
    })
    .unwrap_err()
    .to_string();
    assert!(
        error.contains("physical id 7 of token 0 is not a slot"),
        "{error}"
    );
}

#[test]
fn counts_reach_every_rank() {
    let counts = ThreadGroup::run(3, |comm| {
        let rank = comm.rank().index() as u64;
        EpDispatcher::new(Arc::new(comm)).exchange_counts(&[rank, 10 * rank])
    })
    .unwrap();
    assert_eq!(counts, vec![vec![0, 0, 1, 10, 2, 20]; 3]);
}
