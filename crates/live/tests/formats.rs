//! Experts of every kind of checkpoint move, scales, zero points and biases included.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::path::Path;
use std::sync::Arc;
use std::thread;

use common::{Model, Rotate, run, watched};
use moekit_checkpoint::Checkpoint;
use moekit_fused_moe::{ActivationQuantMode, FusedMoeConfig, Reduction};
use moekit_live::{CheckpointExperts, ExpertSource, LiveConfig};
use moekit_parallel::ThreadWorld;
use moekit_placement::link_plugins;
use moekit_quant::{QuantBackend, TensorSource, backend_for};
use moekit_routing::LogicalExpert;

fn model(name: &str, reduction: Reduction, quantized_inputs: bool) -> Model {
    link_plugins!(
        moekit_quant_unquantized,
        moekit_quant_fp8,
        moekit_quant_mxfp4,
        moekit_quant_compressed_tensors,
    );
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let checkpoint = Checkpoint::open(fixtures.join(name)).unwrap();
    let specs = checkpoint.model().unwrap().layers;
    let backend = backend_for(checkpoint.quantization_config()).unwrap();
    let backend: Arc<dyn QuantBackend> = backend.into();
    let tensors: Arc<dyn TensorSource> = Arc::new(checkpoint);
    let source = CheckpointExperts::new(backend, tensors, specs.clone());
    let mode = match quantized_inputs {
        true => ActivationQuantMode::Emulate,
        false => ActivationQuantMode::Off,
    };
    let (mut parts, mut experts) = (Vec::new(), Vec::new());
    for (layer, spec) in specs.iter().enumerate() {
        let config = FusedMoeConfig::from_spec(spec)
            .with_reduction(reduction)
            .with_activation_quant(mode);
        parts.push(source.parts(layer, config).unwrap());
        let read = |e| source.read(layer, LogicalExpert::new(e)).unwrap();
        experts.push((0..spec.num_experts).map(read).collect());
    }
    Model::new(parts, experts, specs[0].hidden_size)
}

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
