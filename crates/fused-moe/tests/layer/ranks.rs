//! The same layer on one rank and on many.

use std::sync::{Arc, Mutex};

use burn::tensor::{DType, Device, Tensor};
use moekit_fused_moe::*;
use moekit_placement::{
    ExpertMapManager, ExpertMapManagerConfig, ModelPlacement, PlacementError, PlacementRequest,
    PlacementStrategy, typetag,
};
use moekit_routing::{
    CountsNeeded, CustomSelector, Placement, ReplicaSelector, ReplicaShares, RoutingError,
    RoutingTableProvider, SelectContext, SelectReplica, Topology,
};
use serde::{Deserialize, Serialize};

use crate::common::ranks::{Mailbox, run_ranks};
use crate::common::*;

const H: usize = 12;
const E: usize = 6;
const K: usize = 3;

/// The tests give their placements themselves.
#[derive(Debug, Serialize, Deserialize)]
struct Unused {}

#[typetag::serde(name = "fused-moe-test-unused")]
impl PlacementStrategy for Unused {
    fn place(&self, _: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        unreachable!("no test updates the topology")
    }
}

fn manager(ranks: &[Vec<usize>], shared: usize) -> Arc<ExpertMapManager> {
    let topology = Topology::new(ranks.len()).unwrap();
    let config = ExpertMapManagerConfig::new(Arc::new(Unused {}), topology, E);
    let placement = Placement::from_ranks(E, ranks).unwrap();
    let config = config.with_shared_experts(shared);
    Arc::new(config.init_with_placement(placement).unwrap())
}

fn placements() -> Vec<Vec<Vec<usize>>> {
    vec![
        vec![vec![0, 1, 2], vec![3, 4, 5]],
        vec![vec![5, 3], vec![0, 1], vec![4, 2]],
        vec![vec![0, 1, 2, 3], vec![], vec![4], vec![5], vec![]],
        vec![vec![0, 1, 2, 0], vec![3, 4, 5, 1], vec![0, 2, 2]],
        vec![vec![5, 4, 3, 2, 1, 0]],
    ]
}

fn config() -> FusedMoeConfig {
    FusedMoeConfig::new(H, 10, E, K)
        .with_seed(5)
        .with_renormalize(true)
}

/// The tokens of a rank: different numbers, none on rank 1.
fn tokens(rank: usize) -> Vec<f32> {
    let count = if rank == 1 { 0 } else { 4 + 3 * rank };
    noise(count, H, 40 + rank as u32)
}

fn forward(layer: &FusedMoe, x: Vec<f32>, dtype: DType) -> FusedMoeOutput {
    let hidden = tensor(x, H, &Device::flex()).cast(dtype);
    layer
        .forward_detailed(hidden, ForwardOptions::new())
        .unwrap()
}

fn floats(output: &FusedMoeOutput) -> Vec<f32> {
    values(output.output.clone().cast(DType::F32))
}

/// Every rank's output equals that of one rank over the same tokens.
fn check(ranks: &[Vec<usize>], config: &FusedMoeConfig, shared: usize, exact: bool) {
    let device = Device::flex();
    let one = (0..E).collect();
    let one_rank = config
        .clone()
        .with_routing(manager(&[one], shared))
        .init(&device)
        .unwrap();
    let manager = manager(ranks, shared);
    for dtype in [DType::F32, DType::BF16] {
        let outputs = run_ranks(ranks.len(), |rank, mailbox| {
            let config = config
                .clone()
                .with_routing(manager.clone())
                .with_dispatcher(mailbox);
            let layer = config.init(&device).unwrap();
            forward(&layer, tokens(rank), dtype)
        });
        for (rank, got) in outputs.iter().enumerate() {
            let expected = forward(&one_rank, tokens(rank), dtype);
            assert_eq!(got.topk_ids, expected.topk_ids);
            assert_eq!(got.load.counts(), expected.load.counts());
            let (got, expected) = (floats(got), floats(&expected));
            if exact {
                assert_eq!(got, expected, "{ranks:?} rank {rank}");
            } else {
                assert_near(
                    &got,
                    &widen(&expected),
                    if dtype == DType::F32 { 1e-6 } else { 4e-3 },
                );
            }
        }
    }
}

#[test]
fn many_ranks_equal_one() {
    for ranks in placements() {
        for compute in [Compute::Auto, Compute::TensorOps] {
            check(&ranks, &config().with_compute(compute), 0, false);
        }
    }
}

#[test]
fn per_slot_reduction_gives_the_same_bits_for_every_placement() {
    for ranks in placements() {
        for selector in ReplicaSelector::NAMES {
            let selector = ReplicaSelector::from_name(selector).unwrap();
            let config = config()
                .with_reduction(Reduction::PerSlot)
                .with_selector(selector);
            check(&ranks, &config, 0, true);
        }
    }
}

#[test]
fn shared_experts_serve_the_tokens_of_their_own_rank() {
    for ranks in placements() {
        let shared = SharedExpertsConfig::new(20)
            .with_num_experts(2)
            .with_gate(true);
        for compute in [Compute::Auto, Compute::TensorOps] {
            let config = config().with_shared_experts(shared).with_compute(compute);
            check(&ranks, &config, 2, false);
            check(&ranks, &config, 0, false);
        }
    }
}

/// 100 intermediate features make four shards, the last of them narrow: fewer than five ranks.
#[test]
fn sharded_shared_experts_add_up_to_the_whole() {
    for ranks in placements() {
        let shared = SharedExpertsConfig::new(100)
            .with_gate(true)
            .with_scaling(0.5);
        for compute in [Compute::Auto, Compute::TensorOps] {
            for bias in [false, true] {
                let config = config()
                    .with_shared_experts(shared.with_bias(bias))
                    .with_compute(compute)
                    .with_expert_bias(bias)
                    .with_sharded_shared_experts(true);
                check(&ranks, &config, 0, false);
            }
        }
    }
    let shared = SharedExpertsConfig::new(20).with_num_experts(2);
    let config = config()
        .with_shared_experts(shared)
        .with_sharded_shared_experts(true);
    let error = config
        .with_routing(manager(&placements()[4], 2))
        .init(&Device::flex());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("they are to be sharded"), "{error}");
}

/// Remembers the counts that it was given.
#[derive(Debug)]
struct Counting {
    needed: CountsNeeded,
    seen: Mutex<Vec<Vec<u64>>>,
}

impl SelectReplica for Counting {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        self.seen
            .lock()
            .unwrap()
            .push(context.counts.unwrap().to_vec());
        ReplicaSelector::default().select(context, topk_ids, physical)
    }

    fn counts_needed(&self) -> CountsNeeded {
        self.needed
    }
}

#[test]
fn selectors_get_the_counts_that_they_ask_for() {
    let manager = manager(&placements()[3], 0);
    for needed in [CountsNeeded::ThisStep, CountsNeeded::PreviousStep] {
        let results: Vec<[Vec<Vec<u64>>; 2]> = run_ranks(3, |rank, mailbox| {
            let counting = Arc::new(Counting {
                needed,
                seen: Mutex::default(),
            });
            let selector = ReplicaSelector::Custom(CustomSelector(counting.clone()));
            let config = config()
                .with_selector(selector)
                .with_routing(manager.clone());
            let layer = config
                .with_dispatcher(mailbox)
                .init(&Device::flex())
                .unwrap();
            let first = forward(&layer, tokens(rank), DType::F32).load;
            let second = forward(&layer, tokens(rank + 10), DType::F32).load;
            let seen = counting.seen.lock().unwrap().clone();
            [
                vec![first.counts().to_vec(), second.counts().to_vec()],
                seen,
            ]
        });
        let of_step = |step: usize| -> Vec<u64> {
            results
                .iter()
                .flat_map(|[counts, _]| counts[step].clone())
                .collect()
        };
        let expected = match needed {
            CountsNeeded::ThisStep => [of_step(0), of_step(1)],
            _ => [vec![0; 3 * E], of_step(0)],
        };
        assert!(
            results.iter().all(|[_, seen]| *seen == expected),
            "{needed:?}"
        );
    }
}

/// Tokens per slot over all ranks, step by step: the layer's, and the shares of their counts.
fn slots_and_shares(ranks: &[Vec<usize>], selector: &str, compute: Compute) -> [Vec<Vec<u64>>; 2] {
    let manager = manager(ranks, 1);
    let table = manager.snapshot();
    let slots = table.num_physical_experts();
    let steps = run_ranks(ranks.len(), |rank, mailbox| {
        let config = config()
            .with_selector(ReplicaSelector::from_name(selector).unwrap())
            .with_shared_experts(SharedExpertsConfig::new(10))
            .with_compute(compute)
            .with_routing(manager.clone())
            .with_dispatcher(mailbox);
        let layer = config.init(&Device::flex()).unwrap();
        let step = |seed: usize| forward(&layer, tokens(rank + seed * 10), DType::F32);
        [step(0), step(1), step(1)]
    });
    let mut shares = ReplicaShares::new(&table);
    let (mut served, mut expected) = (Vec::new(), Vec::new());
    for step in 0..3 {
        let (mut counts, mut served_now) = (vec![0; E], vec![0; slots]);
        for output in steps.iter().map(|steps| &steps[step]) {
            counts
                .iter_mut()
                .zip(output.load.counts())
                .for_each(|(sum, n)| *sum += n);
            for &slot in output.physical_ids.iter().filter(|&&id| id < slots as i64) {
                served_now[usize::try_from(slot).unwrap()] += 1;
            }
        }
        expected.push(shares.split(&counts).unwrap().to_vec());
        served.push(served_now);
    }
    [served, expected]
}

#[test]
fn slots_serve_exactly_their_shares() {
    let four = vec![vec![0, 1, 2], vec![0, 3, 4], vec![0, 5, 1], vec![2, 0, 4]];
    for ranks in [
        placements().swap_remove(4),
        placements().swap_remove(3),
        four,
    ] {
        for compute in [Compute::Auto, Compute::TensorOps] {
            let [served, shares] = slots_and_shares(&ranks, "waterfill", compute);
            assert_eq!(served, shares, "{ranks:?}");
            // What is known beforehand in the last step are the counts of the same tokens.
            let [served, shares] = slots_and_shares(&ranks, "waterfill-previous", compute);
            assert_eq!(served[2], shares[1], "{ranks:?}");
        }
    }
}

fn layer(manager: &Arc<ExpertMapManager>, mailbox: Arc<Mailbox>) -> FusedMoe {
    let config = config()
        .with_routing(manager.clone())
        .with_dispatcher(mailbox);
    config.init(&Device::flex()).unwrap()
}

#[test]
fn an_error_on_one_rank_is_an_error_on_all() {
    let manager = manager(&placements()[1], 0);
    let results = run_ranks(3, |rank, mailbox| {
        let layer = layer(&manager, mailbox);
        let width = if rank == 2 { H + 1 } else { H };
        layer
            .forward(Tensor::zeros([4, width], &Device::flex()))
            .unwrap_err()
            .to_string()
    });
    assert!(results[2].contains("[4, 13]"), "{results:?}");
    assert!(
        results[..2]
            .iter()
            .all(|e| e.contains("rank 2") && e.contains("[4, 13]")),
        "{results:?}"
    );
}

#[test]
fn gradients_across_ranks_are_refused() {
    let manager = manager(&placements()[0], 0);
    let results = run_ranks(2, |rank, mailbox| {
        let layer = layer(&manager, mailbox);
        let hidden = tensor(tokens(rank), H, &Device::flex()).autodiff();
        layer.forward(hidden).unwrap_err().to_string()
    });
    assert!(
        results
            .iter()
            .all(|e| e.contains("autodiff is enabled and the layer has 2 ranks"))
    );
}

#[test]
fn a_new_table_needs_its_own_weights() {
    let device = Device::flex();
    let (before, after) = (
        vec![vec![0, 1, 2], vec![3, 4, 5]],
        vec![vec![0, 4, 2], vec![3, 1, 5]],
    );
    let manager = manager(&before, 0);
    let expected = config().init(&device).unwrap();
    let errors = run_ranks(2, |rank, mailbox| {
        let mut layer = layer(&manager, mailbox.clone());
        forward(&layer, tokens(rank), DType::F32);
        if rank == 0 {
            manager
                .apply(Placement::from_ranks(E, &after).unwrap())
                .unwrap();
        }
        // Every rank waits until the table has changed.
        mailbox.exchange_counts(&[]).unwrap();
        let table = manager.snapshot();
        assert_eq!(table.generation(), 1);
        let stale = layer.clone();
        let moved = config()
            .with_routing(manager.clone())
            .with_dispatcher(mailbox.clone());
        let moved = moved.init(&device).unwrap();
        let held = table.local_to_global(mailbox.rank()).unwrap().to_vec();
        assert!(
            layer
                .set_experts(moved.experts.clone(), held[1..].to_vec())
                .is_err()
        );
        layer.set_experts(moved.experts, held).unwrap();
        let got = forward(&layer, tokens(rank), DType::F32);
        assert_eq!(got.load.generation(), 1);
        let one_rank = forward(&expected, tokens(rank), DType::F32);
        assert_near(&floats(&got), &widen(&floats(&one_rank)), 1e-6);
        // The stale pass ends the group, so that all ranks must be done with theirs.
        mailbox.exchange_counts(&[]).unwrap();
        stale
            .forward(tensor(tokens(rank), H, &device))
            .unwrap_err()
            .to_string()
    });
    let message = "generation 1 places experts [0, 4, 2] on rank 0";
    assert!(
        errors[0].contains(message) && errors[0].contains("[0, 1, 2]"),
        "{errors:?}"
    );
}

#[test]
fn dispatcher_and_table_must_speak_of_one_group() {
    let two = config().with_routing(manager(&placements()[0], 0));
    let error = two.init(&Device::flex()).unwrap_err().to_string();
    assert!(
        error.contains("rank 0 of 1, but the routing table has 2 ranks"),
        "{error}"
    );
    let more = FusedMoeConfig::new(H, 10, E + 1, K).with_routing(manager(&placements()[4], 0));
    let error = more.init(&Device::flex()).unwrap_err().to_string();
    assert!(
        error.contains("the layer has 7 experts, the routing table 6"),
        "{error}"
    );
}
