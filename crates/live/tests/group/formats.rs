//! Experts of every kind of checkpoint move, scales, zero points and biases included.

use std::sync::Arc;
use std::thread;

use moekit_fused_moe::Reduction;
use moekit_live::LiveConfig;
use moekit_parallel::ThreadWorld;

use crate::common::fixtures::model;
use crate::common::{Rotate, run, watched};

/// Moves experts every few steps over three ranks; compares every output with one rank.
fn check(name: &'static str) {
    watched(move || {
        for (reduction, exact) in [(Reduction::PerSlot, true), (Reduction::PerRank, false)] {
            for quantized_inputs in [false, true] {
                let model = model(name, reduction, quantized_inputs);
                let ranks = 3;
                let config = LiveConfig::new(Arc::new(Rotate { by: 3 }))
                    .with_interval(2)
                    .with_redundant_experts(1)
                    .with_bytes_per_step(40_000)
                    .with_synchronous(true);
                let world = ThreadWorld::new(ranks);
                let threads: Vec<_> = (0..ranks)
                    .map(|_| {
                        let (model, config) = (model.clone(), config.clone());
                        let member = world.enter();
                        thread::spawn(move || {
                            let id = member.id();
                            let live = model.start(member, ranks, config).unwrap();
                            run(&model, live, id, 16, exact)
                        })
                    })
                    .collect();
                for thread in threads {
                    let seen = thread.join().unwrap();
                    assert!(
                        seen.errors.is_empty() && seen.failures().is_empty(),
                        "{seen:?}"
                    );
                    assert!(seen.commits() >= 2, "{name}: {seen:?}");
                }
            }
        }
    });
}

#[test]
fn unquantized() {
    check("qwen3_moe-bf16");
}

#[test]
fn fp8_blocks() {
    check("qwen3_moe-fp8-block64x32");
}

#[test]
fn mxfp4_with_biases() {
    check("gpt_oss-mxfp4");
}

#[test]
fn int4_groups_with_shared_experts() {
    check("kimi_k2-ct-w4a16-g32");
}

#[test]
fn int4_groups_with_zero_points() {
    check("qwen3_moe-ct-w4a16-g32-asym");
}
