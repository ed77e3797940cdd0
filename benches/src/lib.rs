//! Inputs that the benchmarks share. All are seeded.

use moekit::placement::{ExpertLoad, PlacementError, PlacementRequest, Topology};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// MoE layers, experts, slots and ranks of a DeepSeek-V3 deployment on 32 ranks.
pub const DEEPSEEK_V3: (usize, usize, usize, usize) = (58, 256, 288, 32);

/// A seeded generator.
pub fn rng(seed: u64) -> impl Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

/// Log-normal loads (σ = 1) of whole tokens.
///
/// # Errors
///
/// If a dimension is zero.
pub fn lognormal_load(
    layers: usize,
    experts: usize,
    seed: u64,
) -> Result<ExpertLoad, PlacementError> {
    let mut rng = rng(seed);
    let values = (0..layers * experts)
        .map(|_| {
            // Box-Muller; `1 - u` is never zero.
            let (u, v): (f64, f64) = (rng.random(), rng.random());
            let normal = (-2.0 * (1.0 - u).ln()).sqrt() * (std::f64::consts::TAU * v).cos();
            (normal.exp() * 1000.0).round()
        })
        .collect();
    ExpertLoad::new(layers, experts, values)
}

/// The request of a DeepSeek-V3 deployment.
///
/// # Errors
///
/// If the shapes disagree.
pub fn deepseek_v3_request<'a>(
    topology: &'a Topology,
    load: &'a ExpertLoad,
) -> Result<PlacementRequest<'a>, PlacementError> {
    let (layers, experts, slots, _) = DEEPSEEK_V3;
    PlacementRequest::new(layers, experts, topology)?
        .with_num_slots(slots)?
        .with_load(load)
}
