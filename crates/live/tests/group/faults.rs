//! Everything that can go wrong goes wrong, and the group goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use moekit_fused_moe::Reduction;
use moekit_live::{Event, LiveConfig, LiveError, LiveRank};
use moekit_parallel::ThreadWorld;
use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, typetag,
};
use serde::{Deserialize, Serialize};

use crate::common::faulty::{EXCHANGES_PER_STEP, Fault, Plan, RANKS, bereaved, with_fault};
use crate::common::{Model, Rotate, Seen, failures, rotating, watched};

/// A rank dies before or after every single exchange of the first steps: in dispatch, in combine,
/// in every round of a migration, before and after every commit. Every output of the survivors is
/// that of one rank or a token that was not served, and in the end nothing is missing.
#[test]
fn a_rank_may_be_lost_at_any_point() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        // A piece takes two messages: ranks are lost in the middle of an expert, too.
        let config = rotating().with_synchronous(true).with_bytes_per_step(1600);
        for exchange in 2 * EXCHANGES_PER_STEP..9 * EXCHANGES_PER_STEP {
            for fault in [Fault::DieBefore, Fault::DieAfter] {
                let who = exchange % RANKS as u64;
                let plan = Plan { fault, exchange };
                let seen = with_fault(&model, &config, 24, who, Some(plan));
                let lost: Vec<u64> = (0..3).filter(|&r| seen[r as usize].is_none()).collect();
                assert_eq!(lost, [who], "{plan:?}");
                let survivors: Vec<&Seen> = seen.iter().flatten().collect();
                for rank in &survivors {
                    assert_eq!(rank.absent, 0, "{plan:?}: {rank:?}");
                    assert_eq!(rank.placements, survivors[0].placements, "{plan:?}");
                    assert_eq!(rank.placements[0].num_ranks(), RANKS - 1);
                    assert!(rank.failures().is_empty(), "{plan:?}: {rank:?}");
                    assert!(rank.commits() >= 3, "{plan:?}: {rank:?}");
                }
            }
        }
    });
}

#[test]
fn experts_that_survivors_hold_are_served_at_once_and_others_are_named_errors() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: 1 })).with_synchronous(true);
        let plan = Plan {
            fault: Fault::DieBefore,
            exchange: 2 * EXCHANGES_PER_STEP,
        };
        let seen = with_fault(&model, &config, 20, 1, Some(plan));
        let survivors: Vec<&Seen> = seen.iter().flatten().collect();
        let unserved: usize = survivors.iter().map(|rank| rank.unserved).sum();
        assert!(unserved > 0, "tokens of the lost experts");
        for rank in survivors {
            assert!(rank.errors[0].contains("rank 1"), "{:?}", rank.errors);
            let regrouped = Event::Regrouped {
                members: vec![0, 2],
                absent: 4,
            };
            assert!(rank.events.contains(&regrouped), "{:?}", rank.events);
        }
        // The first placement and then exactly what was lost: experts 1 and 4 of both layers.
        let mut reads = model.source.reads.lock().unwrap()[12..].to_vec();
        reads.sort_unstable();
        assert_eq!(reads, [(0, 1), (0, 4), (1, 1), (1, 4)]);
    });
}

#[test]
fn a_damaged_piece_is_rolled_back_and_tried_again() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating()
            .with_synchronous(true)
            .with_bytes_per_step(1 << 20);
        // The first plan begins in step 3 and is adopted in step 4, pieces of it go out in step 5.
        let exchange = 5 * EXCHANGES_PER_STEP - 1;
        let mut seen_failures = 0;
        for to in 0..RANKS {
            for fault in [
                Fault::Cut { to, bytes: 1 },
                Fault::Cut { to, bytes: 300 },
                Fault::Flip { to, from_end: 3 },
                Fault::Flip { to, from_end: 400 },
            ] {
                let seen = with_fault(&model, &config, 40, 0, Some(Plan { fault, exchange }));
                for rank in seen.iter().flatten() {
                    assert_eq!((rank.absent, rank.unserved), (0, 0));
                    assert!(rank.commits() >= 4, "{fault:?}: {rank:?}");
                }
                let failures = seen[0].as_ref().unwrap().failures();
                if let Some(reason) = failures.first() {
                    seen_failures += 1;
                    let named = [
                        "bytes arrived",
                        "the checksum is",
                        "a piece of an expert was cut",
                    ];
                    assert!(named.iter().any(|n| reason.contains(n)), "{reason}");
                    assert!(reason.starts_with(&format!("rank {to}: ")), "{reason}");
                }
            }
        }
        assert!(seen_failures >= 4, "{seen_failures} faults hit a piece");
    });
}

/// The header of a piece claims an expert of 4 EiB, for which there is a budget, but no memory.
#[test]
fn no_memory_for_an_expert_is_refused_with_the_number_and_tried_again() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating()
            .with_synchronous(true)
            .with_bytes_per_step(1 << 20)
            .with_staging_bytes(u64::MAX);
        let exchange = 5 * EXCHANGES_PER_STEP - 1;
        let expert = usize::try_from(model.encoded_expert()).unwrap();
        // The last piece is a whole expert; before it lie its length and that of the expert.
        let from_end = expert + size_of::<u64>();
        let claimed = (1_usize << 62) + expert;
        let mut refused = Vec::new();
        for to in 0..RANKS {
            let fault = Fault::Flip { to, from_end };
            let seen = with_fault(&model, &config, 40, 0, Some(Plan { fault, exchange }));
            for rank in seen.iter().flatten() {
                assert!(rank.errors.is_empty(), "the group goes on: {rank:?}");
                assert_eq!((rank.absent, rank.unserved), (0, 0));
                assert!(rank.commits() >= 4, "{rank:?}");
            }
            let failures = seen[0].as_ref().unwrap().failures();
            refused.extend(failures.into_iter().map(str::to_owned));
        }
        assert!(!refused.is_empty(), "rank 0 sends something");
        for reason in refused {
            let said = format!("no memory for the {claimed} bytes of expert");
            assert!(reason.contains(&said), "{reason}");
        }
    });
}

#[test]
fn a_damaged_control_message_ends_the_group_and_all_go_on() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_synchronous(true);
        // In step 2 nothing moves: all bytes are control and load.
        let exchange = 2 * EXCHANGES_PER_STEP - 1;
        for fault in [
            Fault::Cut { to: 1, bytes: 8 },
            Fault::Flip {
                to: 1,
                from_end: 20,
            },
        ] {
            let seen = with_fault(&model, &config, 30, 2, Some(Plan { fault, exchange }));
            for rank in seen.iter().map(|rank| rank.as_ref().unwrap()) {
                assert_eq!(rank.errors.len(), 1, "{:?}", rank.errors);
                assert!(
                    rank.errors[0].contains("the message of rank 2"),
                    "{:?}",
                    rank.errors
                );
                assert_eq!((rank.absent, rank.placements[0].num_ranks()), (0, RANKS));
                assert!(rank.commits() >= 2);
            }
        }
    });
}

/// Plans well from the third time on; until then it does what its name says.
#[derive(Debug, Serialize, Deserialize)]
struct Moody {
    mood: Mood,
    #[serde(skip)]
    calls: Arc<AtomicUsize>,
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
enum Mood {
    Panics,
    NeverReturns,
    LeavesAnExpertOut,
    AnswersSomethingElse,
}

#[typetag::serde(name = "live-test-moody")]
impl PlacementStrategy for Moody {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        if self.calls.fetch_add(1, Ordering::SeqCst) >= 2 {
            return (Rotate { by: 1 }).place(request);
        }
        match self.mood {
            Mood::Panics => std::panic::resume_unwind(Box::new("no idea")),
            Mood::NeverReturns => loop {
                thread::park();
            },
            Mood::LeavesAnExpertOut => {
                let slots = vec![0; request.num_slots()];
                let experts = request.num_logical_experts();
                let layer = Placement::new(experts, slots, request.rank_offsets())?;
                ModelPlacement::new(vec![layer; request.num_layers()])
            }
            Mood::AnswersSomethingElse => {
                let experts = request.num_logical_experts();
                let layer = Placement::new(experts, (0..experts).collect(), vec![0, experts])?;
                ModelPlacement::new(vec![layer; request.num_layers()])
            }
        }
    }
}

#[test]
fn planners_that_fail_are_reported_and_asked_again() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        for (mood, reason) in [
            (Mood::Panics, "the planner panicked: no idea"),
            (Mood::NeverReturns, "has not returned in 200 steps"),
            (Mood::LeavesAnExpertOut, "expert 1 has no physical slot"),
            (Mood::AnswersSomethingElse, "broke its contract"),
        ] {
            let moody = Moody {
                mood,
                calls: Arc::default(),
            };
            // Not synchronous: a planner that never returns must not be waited for.
            let config = LiveConfig::new(Arc::new(moody))
                .with_interval(10)
                .with_retry(3)
                .with_deadline(200)
                .with_redundant_experts(3);
            let seen = with_fault(&model, &config, 2000, 9, None);
            for rank in seen.iter().map(|rank| rank.as_ref().unwrap()) {
                let failures = rank.failures();
                let named = failures.iter().filter(|f| f.contains(reason));
                assert!(named.count() >= 2, "{mood:?}: {failures:?}");
                let failed = rank
                    .states
                    .iter()
                    .filter(|s| s.starts_with("failed in step"));
                assert!(failed.count() >= 2);
                assert!(
                    rank.errors.is_empty() && rank.commits() >= 2,
                    "{mood:?}: {rank:?}"
                );
            }
        }
    });
}

fn absent(live: &LiveRank) -> usize {
    live.absent(0).len() + live.absent(1).len()
}

#[test]
fn a_shard_that_vanishes_is_reported_until_it_is_back() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: 1 }))
            .with_retry(4)
            .with_synchronous(true);
        let (mut live, _) = bereaved(&model, &config);
        model.source.gone.store(true, Ordering::Relaxed);
        live.recover().unwrap();
        assert_eq!(absent(&live), 6);

        let mut unserved = 0;
        let mut reasons = Vec::new();
        for step in 0..30 {
            if step == 15 {
                model.source.gone.store(false, Ordering::Relaxed);
            }
            unserved += model.step(&live, 0, true).unwrap();
            reasons.extend(failures(live.end_step().unwrap().events));
        }
        assert!(unserved > 0);
        assert!(
            (2..=5).contains(&reasons.len()),
            "tried again and again: {reasons:?}"
        );
        let named = "cannot be read: shard 2 of 3: no such file";
        assert!(reasons[0].contains(named), "{reasons:?}");
        assert_eq!(absent(&live), 0);
        assert_eq!(model.step(&live, 0, true).unwrap(), 0);
    });
}

#[test]
fn a_read_that_never_returns_is_given_up_and_tried_again() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: 1 }))
            .with_retry(3)
            .with_deadline(200);
        let (mut live, _) = bereaved(&model, &config);
        model.source.stuck.store(true, Ordering::Relaxed);
        live.recover().unwrap();
        let mut reasons = Vec::new();
        while reasons.len() < 2 {
            model.step(&live, 0, true).unwrap();
            reasons.extend(failures(live.end_step().unwrap().events));
        }
        for reason in reasons {
            assert!(reason.contains("has not ended in 200 steps"), "{reason}");
        }
        model.source.stuck.store(false, Ordering::Relaxed);
        while absent(&live) > 0 {
            model.step(&live, 0, true).unwrap();
            live.end_step().unwrap();
        }
        assert_eq!(model.step(&live, 0, true).unwrap(), 0);
    });
}

#[test]
fn a_staging_budget_below_one_expert_is_refused_with_the_number() {
    watched(|| {
        let model = Model::random(1, Reduction::PerSlot);
        let world = ThreadWorld::new(1);
        let config = rotating().with_staging_bytes(500);
        let error = model.start(world.enter(), 1, config).unwrap_err();
        let LiveError::Staging {
            budget: 500,
            needed,
            layer: 0,
        } = error
        else {
            panic!("{error}");
        };
        assert!(
            needed > 3 * 8 * 4 * 4,
            "the weights and what says so: {needed}"
        );
        let said = format!(
            "a staging budget of 500 bytes per rank is too small: one expert of layer 0 takes {needed}"
        );
        assert_eq!(error.to_string(), said);
        let enough = rotating().with_staging_bytes(needed);
        assert!(model.start(ThreadWorld::new(1).enter(), 1, enough).is_ok());
    });
}
