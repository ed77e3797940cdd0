//! Threads read a layer while its weights and table are swapped.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Model, rotating, values, watched};
use moekit_fused_moe::Reduction;
use moekit_parallel::ThreadWorld;
use moekit_routing::ExpertRouting;

/// No reader ever sees new weights under an old table, or the other way round: it would be an error
/// of the layer (stale experts), or another output. A few hundred swaps, or as many as fit into
/// `MOEKIT_READERS_SECONDS`.
#[test]
fn eight_readers_never_see_a_mixture() {
    watched(|| {
        let seconds: Option<u64> = std::env::var("MOEKIT_READERS_SECONDS")
            .ok()
            .and_then(|s| s.parse().ok());
        let until = seconds.map(|s| Instant::now() + Duration::from_secs(s.min(250)));
        let model = Model::random(1, Reduction::PerSlot);
        let config = rotating()
            .with_interval(1)
            .with_redundant_experts(2)
            .with_synchronous(true);
        let mut live = model.start(ThreadWorld::new(1).enter(), 1, config).unwrap();
        let layer = live.shared_layer(0).unwrap();
        let done = AtomicBool::new(false);
        let reads = AtomicU64::new(0);
        let generations = thread::scope(|scope| {
            let readers: Vec<_> = (0..8_u64)
                .map(|reader| {
                    let (model, layer, done, reads) = (&model, &layer, &done, &reads);
                    scope.spawn(move || {
                        let tokens = model.tokens(0, reader, 1 + 4 * reader);
                        let expected =
                            values(layer.current().unwrap().forward(tokens.clone()).unwrap());
                        let mut seen = std::collections::BTreeSet::new();
                        while !done.load(Ordering::Relaxed) {
                            let current = layer.current().unwrap();
                            seen.insert(current.routing_table().generation());
                            let got = values(current.forward(tokens.clone()).unwrap());
                            let bits =
                                |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                            assert_eq!(bits(&got), bits(&expected));
                            reads.fetch_add(1, Ordering::Relaxed);
                        }
                        seen.len()
                    })
                })
                .collect();
            let mut step = 0;
            while match until {
                Some(until) => Instant::now() < until,
                // As many reads as it takes for all readers to have seen several tables.
                None => step < 300 || reads.load(Ordering::Relaxed) < 400,
            } {
                live.end_step().unwrap();
                step += 1;
            }
            done.store(true, Ordering::Relaxed);
            readers
                .into_iter()
                .map(|r| r.join().unwrap())
                .sum::<usize>()
        });
        assert!(generations > 16, "{generations}");
        assert!(live.layer(0).unwrap().routing_table().generation() > 50);
    });
}
