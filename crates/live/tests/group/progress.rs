//! Whatever happens, the group gets on, or says that it cannot.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use burn::tensor::{Device, Tensor};
use moekit_fused_moe::{ForwardOptions, Reduction};
use moekit_live::{CostModel, Event, LiveConfig, LiveError, LiveRank, LoadReport, Triggers};
use moekit_parallel::ThreadWorld;
use moekit_routing::{Rank, ReplicaSelector};

use crate::common::faulty::{EXCHANGES_PER_STEP, Fault, Plan, bereaved, with_fault};
use crate::common::{HIDDEN, Model, Rotate, Seen, TOP_K, failures, rotating, run, watched};

/// Plans only when the ranks have changed.
fn at_rest() -> LiveConfig {
    LiveConfig::new(Arc::new(Rotate { by: 1 }))
        .with_retry(4)
        .with_synchronous(true)
}

/// Whether every rank holds experts of every layer.
fn all_hold(live: &LiveRank) -> bool {
    let holds = |p: &moekit_placement::Placement| p.rank_offsets().windows(2).all(|w| w[1] > w[0]);
    live.placements().iter().all(holds)
}

fn adopted(seen: &Seen) -> usize {
    let adopted = |e: &&Event| matches!(e, Event::PlanAdopted { .. });
    seen.events.iter().filter(adopted).count()
}

/// Selectors that look at counts must not see tokens of experts that nobody holds; and the plan for
/// the survivors comes, although no trigger asks for one.
#[test]
fn a_rank_may_be_lost_under_every_selector() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        for name in ReplicaSelector::NAMES {
            let selector = ReplicaSelector::from_name(name).unwrap();
            for redundant in [0, 4] {
                let config = at_rest()
                    .with_redundant_experts(redundant)
                    .with_selector(selector.clone());
                let fault = Fault::DieBefore;
                let exchange = 2 * EXCHANGES_PER_STEP;
                let seen = with_fault(&model, &config, 20, 1, Some(Plan { fault, exchange }));
                let survivors: Vec<&Seen> = seen.iter().flatten().collect();
                assert_eq!(survivors.len(), 2, "{name}");
                let unserved: usize = survivors.iter().map(|rank| rank.unserved).sum();
                assert!(unserved > 0, "{name}: tokens of the lost experts");
                for rank in survivors {
                    assert_eq!((rank.absent, rank.errors.len()), (0, 1), "{name}: {rank:?}");
                    assert_eq!(adopted(rank), 1, "{name}: {rank:?}");
                }
            }
        }
    });
}

#[test]
fn an_error_that_repeats_is_not_tried_for_ever() {
    watched(|| {
        let model = Model::random(1, Reduction::PerSlot);
        let world = ThreadWorld::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (model, member) = (model.clone(), world.enter());
                thread::spawn(move || {
                    let id = member.id();
                    let mut live = model.start(member, 2, rotating()).unwrap();
                    for _ in 0..20 {
                        let tokens = match id {
                            0 => model.tokens(0, id, live.step()),
                            _ => Tensor::zeros([1, HIDDEN - 1], &Device::flex()),
                        };
                        let error = live.forward(0, tokens, ForwardOptions::new()).unwrap_err();
                        assert!(error.ends_group(), "{error}");
                        let cause = format!("{}", HIDDEN - 1);
                        assert!(error.to_string().contains(&cause), "{error}");
                        if let Err(error) = live.recover() {
                            return error;
                        }
                    }
                    panic!("it tries on and on");
                })
            })
            .collect();
        for thread in threads {
            let error = thread.join().unwrap();
            assert!(
                matches!(error, LiveError::NoProgress { step: 0, .. }),
                "{error}"
            );
            assert!(!error.ends_group());
        }
    });
}

/// A rank whose forward pass fails when it is through on the others: [`run`] checks that every step
/// has its outputs.
#[test]
fn no_step_is_without_outputs() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_synchronous(true).with_bytes_per_step(1600);
        for exchange in 2 * EXCHANGES_PER_STEP..5 * EXCHANGES_PER_STEP {
            let fault = Fault::FailAfter;
            let who = exchange % 3;
            let seen = with_fault(&model, &config, 12, who, Some(Plan { fault, exchange }));
            for rank in seen {
                let rank = rank.unwrap();
                assert_eq!((rank.errors.len(), rank.absent), (1, 0), "{rank:?}");
            }
        }
    });
}

#[test]
fn what_cannot_be_read_keeps_nobody_from_coming_or_going() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = at_rest();
        let (mut live, world) = bereaved(&model, &config);
        model.source.gone.store(true, Ordering::Relaxed);
        live.recover().unwrap();
        let leave = Arc::new(AtomicBool::new(false));
        let newcomer = {
            let (model, member, leave) = (model.clone(), world.enter(), leave.clone());
            thread::spawn(move || {
                let id = member.id();
                let mut live = model.start(member, 2, config).unwrap();
                while live.rank().is_some() {
                    live.set_leaving(leave.load(Ordering::SeqCst));
                    model.step(&live, id, true).unwrap();
                    live.end_step().unwrap();
                }
            })
        };
        let mut reasons = Vec::new();
        let mut until = |live: &mut LiveRank, done: fn(&LiveRank) -> bool| {
            while !done(live) {
                model.step(live, 0, true).unwrap();
                reasons.extend(failures(live.end_step().unwrap().events));
            }
        };
        until(&mut live, |live| {
            live.members().len() == 2 && all_hold(live)
        });
        leave.store(true, Ordering::SeqCst);
        until(&mut live, |live| live.members().len() == 1);
        newcomer.join().unwrap();
        assert_eq!(live.absent(0).len() + live.absent(1).len(), 6);
        model.source.gone.store(false, Ordering::Relaxed);
        until(&mut live, |live| {
            live.absent(0).is_empty() && live.absent(1).is_empty()
        });
        assert_eq!(model.step(&live, 0, true).unwrap(), 0);
        let named = "cannot be read: shard 2 of 3: no such file";
        assert!(reasons.iter().all(|r| r.contains(named)), "{reasons:?}");
    });
}

#[test]
fn reads_that_never_return_are_not_started_for_ever() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = LiveConfig::new(Arc::new(Rotate { by: 1 }))
            .with_retry(1)
            .with_deadline(200);
        let (mut live, _) = bereaved(&model, &config);
        model.source.stuck.store(true, Ordering::Relaxed);
        live.recover().unwrap();
        let refused = loop {
            let reasons = failures(live.end_step().unwrap().events);
            // A planner may take longer than 200 steps that do nothing.
            if let Some(reason) = { reasons }.find(|r| r.contains("reads of experts")) {
                break reason;
            }
        };
        assert!(
            refused.ends_with("8 reads of experts have not returned, no other is started"),
            "{refused}"
        );
    });
}

#[test]
fn a_rank_that_stays_after_all_gets_experts_again() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = at_rest().with_bytes_per_step(400);
        let world = ThreadWorld::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (model, config, member) = (model.clone(), config.clone(), world.enter());
                thread::spawn(move || {
                    let id = member.id();
                    let mut live = model.start(member, 2, config).unwrap();
                    let mut plans = 0;
                    while live.step() < 300 {
                        live.set_leaving(id == 1 && (3..8).contains(&live.step()));
                        model.step(&live, id, true).unwrap();
                        let events = live.end_step().unwrap().events;
                        let plan = |e: &&Event| matches!(e, Event::PlanAdopted { .. });
                        plans += events.iter().filter(plan).count();
                    }
                    (live.members().to_vec(), all_hold(&live), plans)
                })
            })
            .collect();
        for thread in threads {
            // One plan without it, one with it.
            assert_eq!(thread.join().unwrap(), (vec![0, 1], true, 2));
        }
    });
}

/// Two ranks, each through `steps` steps.
fn pair(model: &Model, config: &LiveConfig, steps: u64) -> Vec<Seen> {
    let world = ThreadWorld::new(2);
    let threads: Vec<_> = (0..2)
        .map(|_| {
            let (model, config, member) = (model.clone(), config.clone(), world.enter());
            thread::spawn(move || {
                let id = member.id();
                let live = model.start(member, 2, config).unwrap();
                run(&model, live, id, steps, true)
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn a_plan_that_was_skipped_is_not_made_again_at_once() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let mut triggers = Triggers::default();
        triggers.balance_below = Some(1.0);
        let config = at_rest()
            .with_triggers(triggers)
            .with_retry(20)
            .with_cost(CostModel::new(0.0, 1.0, 1.0));
        let skipped = |e: &&Event| matches!(e, Event::PlanSkipped { .. });
        let seen = pair(&model, &config, 100);
        let skips = seen[0].events.iter().filter(skipped).count();
        assert!((2..=5).contains(&skips), "{:?}", seen[0].events);
    });
}

#[test]
fn loads_are_delivered_as_often_as_asked_for() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_load_interval(5).with_synchronous(true);
        let world = ThreadWorld::new(2);
        let threads: Vec<_> = (0..2)
            .map(|_| {
                let (model, config, member) = (model.clone(), config.clone(), world.enter());
                thread::spawn(move || {
                    let id = member.id();
                    let mut live = model.start(member, 2, config).unwrap();
                    let mut reports: Vec<(u64, LoadReport)> = Vec::new();
                    while live.step() < 23 {
                        model.step(&live, id, true).unwrap();
                        let report = live.end_step().unwrap();
                        reports.extend(report.balance.map(|balance| (report.step, balance)));
                    }
                    (live.rank(), reports)
                })
            })
            .collect();
        for thread in threads {
            let (rank, reports) = thread.join().unwrap();
            if rank != Some(Rank::new(0)) {
                assert!(reports.is_empty());
                continue;
            }
            let steps: Vec<u64> = reports.iter().map(|(step, _)| *step).collect();
            assert_eq!(steps, [5, 10, 15, 20]);
            for (step, report) in reports {
                assert_eq!(report.steps, 5);
                for (layer, ranks) in report.tokens.iter().enumerate() {
                    let tokens = |step| (0..2).map(move |member| (step, member));
                    let tokens = (step - 5..step).flat_map(tokens);
                    let tokens = tokens.map(|(s, m)| model.tokens(layer, m, s).dims()[0]);
                    let routed = TOP_K * tokens.sum::<usize>();
                    assert_eq!(ranks.iter().sum::<u64>(), routed as u64);
                }
            }
        }
    });
}
