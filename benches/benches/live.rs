//! What placement-invariant sums cost, and what moving experts adds to a step:
//! `cargo bench --bench live`. Both sides of every ratio are measured in one run, by turns.

#![allow(
    clippy::unwrap_used,
    reason = "a benchmark that cannot set up its input has nothing to say"
)]

use std::sync::Arc;
use std::time::Instant;

use moekit::burn::tensor::{Device, Distribution, Tensor};
use moekit::fused_moe::{FusedMoe, FusedMoeConfig, Reduction};
use moekit::kernels::CpuKernel;
use moekit::parallel::{Communicator, EpDispatcher, ThreadGroup};
use moekit::placement::{ExpertMapManagerConfig, Topology};
use moekit::strategies::linear::Linear;

/// Hidden size, intermediate size, experts, top-k.
const SHAPE: (usize, usize, usize, usize) = (1024, 512, 32, 8);
const ROUNDS: usize = 40;

/// Milliseconds of a forward pass of every rank, by turns with and without fixed order.
fn forward(ranks: usize, tokens: usize) -> [f64; 2] {
    let (hidden, intermediate, experts, top_k) = SHAPE;
    let topology = Topology::new(ranks).unwrap();
    let manager = ExpertMapManagerConfig::new(Arc::new(Linear {}), topology, experts);
    let manager = Arc::new(manager.init().unwrap());
    let times = ThreadGroup::run(ranks, |comm| {
        let comm: Arc<dyn Communicator> = Arc::new(comm);
        let layer = |reduction: Reduction| -> FusedMoe {
            FusedMoeConfig::new(hidden, intermediate, experts, top_k)
                .with_renormalize(true)
                .with_routing(manager.clone())
                .with_dispatcher(Arc::new(EpDispatcher::new(comm.clone())))
                .with_kernel(CpuKernel::with_threads(1).unwrap())
                .with_reduction(reduction)
                .init(&Device::flex())
                .unwrap()
        };
        let layers = [layer(Reduction::PerRank), layer(Reduction::PerSlot)];
        let rows = Tensor::random([tokens, hidden], Distribution::Default, &Device::flex());
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..ROUNDS {
            for (layer, times) in layers.iter().zip(&mut times) {
                comm.barrier()?;
                let start = Instant::now();
                layer.forward(rows.clone()).unwrap();
                comm.barrier()?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
            }
        }
        Ok::<_, moekit::parallel::CommError>(times.map(median))
    });
    times.unwrap()[0]
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn main() {
    println!("ranks  tokens/rank  per rank ms  per slot ms  ratio");
    for ranks in [1, 2, 4] {
        for tokens in [1, 16, 64] {
            let [rank, slot] = forward(ranks, tokens);
            let ratio = slot / rank;
            println!("{ranks:5}  {tokens:11}  {rank:11.3}  {slot:11.3}  {ratio:5.2}");
        }
    }
}
