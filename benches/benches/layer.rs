//! How long a forward pass of the layer takes, on one rank and on several:
//! `cargo bench --bench layer`.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use std::sync::Arc;

use divan::counter::ItemsCount;
use moekit::burn::tensor::{Device, Distribution, Tensor};
use moekit::fused_moe::{Compute, FusedMoe, FusedMoeConfig};
use moekit::parallel::{Communicator, EpDispatcher, ThreadGroup};
use moekit::placement::{ExpertMapManagerConfig, Topology};
use moekit::strategies::linear::Linear;

/// Hidden size, intermediate size, experts, top-k.
const SHAPE: (usize, usize, usize, usize) = (512, 256, 32, 4);

fn main() {
    divan::main();
}

fn config() -> FusedMoeConfig {
    let (hidden, intermediate, experts, top_k) = SHAPE;
    FusedMoeConfig::new(hidden, intermediate, experts, top_k).with_renormalize(true)
}

fn tokens(count: usize) -> Tensor<2> {
    Tensor::random([count, SHAPE.0], Distribution::Default, &Device::flex())
}

fn forward(bencher: divan::Bencher<'_, '_>, layer: &FusedMoe, count: usize) {
    let hidden = tokens(count);
    bencher
        .counter(ItemsCount::new(count))
        .bench_local(|| layer.forward(hidden.clone()).unwrap());
}

/// One rank, the CPU kernels.
#[divan::bench(args = [1, 16, 128])]
fn kernels(bencher: divan::Bencher<'_, '_>, count: usize) {
    forward(bencher, &config().init(&Device::flex()).unwrap(), count);
}

/// One rank, tensor operations.
#[divan::bench(args = [1, 16, 128])]
fn tensor_ops(bencher: divan::Bencher<'_, '_>, count: usize) {
    let layer = config()
        .with_compute(Compute::TensorOps)
        .init(&Device::flex())
        .unwrap();
    forward(bencher, &layer, count);
}

/// 128 tokens over ranks as threads: dispatch, experts, combine. Loading is part of it.
#[divan::bench(args = [1, 2, 4])]
fn ranks(bencher: divan::Bencher<'_, '_>, ranks: usize) {
    let topology = Topology::new(ranks).unwrap();
    let manager = ExpertMapManagerConfig::new(Arc::new(Linear {}), topology, SHAPE.2)
        .init()
        .unwrap();
    let manager = Arc::new(manager);
    bencher.counter(ItemsCount::new(128usize)).bench_local(|| {
        ThreadGroup::run(ranks, |comm| {
            let hidden = tokens(128 / comm.size());
            config()
                .with_routing(manager.clone())
                .with_dispatcher(Arc::new(EpDispatcher::new(Arc::new(comm))))
                .init(&Device::flex())?
                .forward(hidden)
        })
        .unwrap()
    });
}
