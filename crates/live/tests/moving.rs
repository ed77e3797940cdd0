//! Experts move every few steps, and no output shows it.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::Arc;
use std::thread;

use common::{Model, Rotate, Seen, rotating, run, watched};
use moekit_fused_moe::Reduction;
use moekit_live::LiveConfig;
use moekit_parallel::ThreadWorld;

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
                        .with_bytes_per_step(150);
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
        let config = rotating().with_synchronous(true).with_bytes_per_step(100);
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
        let (much, little) = (commits(1 << 20), commits(1500));
        assert_eq!(much, 1);
        assert_eq!(little, 3);
    });
}
