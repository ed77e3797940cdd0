//! Experts move every few steps, and no output shows it.

use std::sync::Arc;
use std::thread;

use moekit_fused_moe::{ForwardOptions, Reduction};
use moekit_live::{Event, FixedGroup, LiveConfig, LiveError};
use moekit_parallel::{Communicator, ThreadGroup, ThreadMember, ThreadWorld};

use crate::common::{Model, Rotate, Seen, rotating, run, values, watched};

/// Ranks as threads, each through `steps` steps.
fn ranks(model: &Model, ranks: usize, config: &LiveConfig, steps: u64, exact: bool) -> Vec<Seen> {
    let world = ThreadWorld::new(ranks);
    let threads: Vec<_> = (0..ranks)
        .map(|_| {
            let (model, config, member) = (model.clone(), config.clone(), world.enter());
            thread::spawn(move || {
                let id = member.id();
                let live = model.start(member, ranks, config).unwrap();
                run(&model, live, id, steps, exact)
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().unwrap()).collect()
}

#[test]
fn outputs_are_those_of_one_rank_at_every_step() {
    watched(|| {
        for (reduction, exact) in [(Reduction::PerSlot, true), (Reduction::PerRank, false)] {
            let model = Model::random(2, reduction);
            for num_ranks in 1..=4 {
                for synchronous in [true, false] {
                    let config = rotating()
                        .with_redundant_experts(2)
                        .with_synchronous(synchronous)
                        .with_bytes_per_step(1200);
                    let seen = ranks(&model, num_ranks, &config, 60, exact);
                    for rank in &seen {
                        assert!(
                            rank.errors.is_empty() && rank.failures().is_empty(),
                            "{rank:?}"
                        );
                        assert_eq!(rank.unserved, 0);
                        assert_eq!(rank.placements, seen[0].placements);
                    }
                    if synchronous {
                        assert!(seen[0].commits() >= 4, "{:?}", seen[0]);
                    }
                }
            }
        }
    });
}

#[test]
fn what_is_synchronous_is_reproducible() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let config = rotating().with_synchronous(true).with_bytes_per_step(1200);
        let events = || {
            let seen = ranks(&model, 3, &config, 40, true);
            seen.into_iter().map(|rank| rank.events).collect::<Vec<_>>()
        };
        assert_eq!(events(), events());
    });
}

#[test]
fn little_staging_takes_more_commits() {
    watched(|| {
        let model = Model::random(1, Reduction::PerSlot);
        // Both ranks exchange all of their three experts.
        let commits = |staging| {
            let config = LiveConfig::new(Arc::new(Rotate { by: 3 }))
                .with_interval(30)
                .with_synchronous(true)
                .with_staging_bytes(staging);
            ranks(&model, 2, &config, 59, true)[0].commits()
        };
        let one = model.encoded_expert();
        let (much, little) = (commits(1 << 20), commits(one + one / 2));
        assert_eq!(much, 1);
        assert_eq!(little, 3);
    });
}

/// Every rank computes the shared expert for its own tokens, whatever else it holds: with one rank
/// more that is lost on the way.
#[test]
fn fused_shared_experts_stay_where_the_tokens_are() {
    watched(|| {
        for reduction in [Reduction::PerSlot, Reduction::PerRank] {
            let model = Model::with_fused_shared(2, reduction);
            let world = ThreadWorld::new(3);
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let (model, member) = (model.clone(), world.enter());
                    thread::spawn(move || beside_one_rank(&model, member, reduction))
                })
                .collect();
            let commits: Vec<usize> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            assert!(commits.iter().all(|&commits| commits >= 4), "{commits:?}");
        }
    });
}

/// Commits of a rank, every output of which is that of one rank by itself; member 2 goes without
/// notice.
fn beside_one_rank(model: &Model, member: ThreadMember, reduction: Reduction) -> usize {
    let id = member.id();
    let config = rotating().with_redundant_experts(1).with_synchronous(true);
    let mut live = model.start(member, 3, config).unwrap();
    let idle = LiveConfig::new(Arc::new(Rotate { by: 1 }));
    let alone = model.start(ThreadWorld::new(1).enter(), 1, idle).unwrap();
    let mut commits = 0;
    while live.step() < 40 && !(id == 2 && live.step() == 20) {
        let mut step = || {
            for layer in 0..model.parts.len() {
                let tokens = model.tokens(layer, id, live.step());
                let got = live.forward(layer, tokens.clone(), ForwardOptions::new())?;
                model.compare(layer, tokens.clone(), &got, false);
                if reduction == Reduction::PerSlot && got.unserved.is_empty() {
                    let expected = alone.forward(layer, tokens, ForwardOptions::new())?;
                    let bits = |t| values(t).into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(bits(got.inner.output), bits(expected.inner.output));
                }
            }
            live.end_step()
        };
        match step() {
            Ok(report) => {
                let commit = |e: &&Event| matches!(e, Event::Committed { .. });
                commits += report.events.iter().filter(commit).count();
            }
            Err(error) => {
                assert!(error.ends_group(), "{error}");
                live.recover().unwrap();
            }
        }
    }
    commits
}

/// Over a transport whose ranks are fixed, experts move all the same; only the group stays.
#[test]
fn a_fixed_group_rebalances_and_ends_with_its_first_rank() {
    watched(|| {
        let model = Model::random(2, Reduction::PerSlot);
        let seen = ThreadGroup::run(3, |comm| {
            let rank = comm.rank().index();
            let config = rotating().with_synchronous(true);
            let mut live = model.start(FixedGroup::new(Arc::new(comm)), 3, config)?;
            let mut commits = 0;
            while live.step() < 20 {
                model.step(&live, rank as u64, true)?;
                let events = live.end_step()?.events;
                let commit = |e: &&Event| matches!(e, Event::Committed { .. });
                commits += events.iter().filter(commit).count();
            }
            let error = live.recover().unwrap_err().to_string();
            assert!(
                error.contains("ranks of this transport are fixed"),
                "{error}"
            );
            Ok::<_, LiveError>(commits)
        });
        assert!(seen.unwrap().iter().all(|&commits| commits >= 4));
    });
}
