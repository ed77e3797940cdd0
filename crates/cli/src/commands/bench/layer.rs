//! One layer of random weights, and its parts to be timed.

use std::collections::BTreeSet;

use half::bf16;
use moekit::kernels::probe::{Arithmetic, Probe};
use moekit::kernels::{ActivationQuantMode, CpuKernel, PreparedExperts, Router};
use moekit::quant::Activation;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};

use super::format::WeightFormat;
use super::routing::Tokens;
use super::shape::Shape;
use super::weights::random_experts;
use super::{ActivationDtype, memory};
use crate::error::Result;

/// Memory that is streamed to measure the bandwidth: some times the last cache of most machines.
pub(super) const STREAM_BYTES: usize = 512 << 20;

/// The experts and the gate of a layer.
pub(super) struct Layer<'a> {
    pub(super) shape: &'a Shape,
    pub(super) format: WeightFormat,
    pub(super) act: ActivationDtype,
    kernel: CpuKernel,
    experts: PreparedExperts,
    /// Bytes of one expert in memory.
    expert_bytes: usize,
    /// `[num_experts, hidden_size]`; in bf16, as a checkpoint of any of these formats has it.
    gate: Vec<bf16>,
    router: Router,
}

impl<'a> Layer<'a> {
    /// Random weights.
    ///
    /// # Arguments
    ///
    /// - `done` - called whenever an expert is ready.
    pub(super) fn random(
        shape: &'a Shape,
        format: WeightFormat,
        act: ActivationDtype,
        kernel: &CpuKernel,
        seed: u64,
        done: impl Fn() + Sync,
    ) -> Result<Self> {
        let experts = random_experts(shape, format, seed, kernel.num_threads(), done)?;
        let experts = PreparedExperts::new(experts)?;
        let expert_bytes = experts.num_bytes() / shape.num_local;
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        Ok(Self {
            shape,
            format,
            act,
            kernel: kernel.clone(),
            experts,
            expert_bytes,
            gate: random_gate(shape, &mut rng),
            router: Router::new(&shape.router(), shape.num_experts, shape.top_k)?,
        })
    }

    /// Runs the experts.
    pub(super) fn run(&self, tokens: &Tokens) -> Result<Vec<f32>> {
        let mode = match self.format.input_quant() {
            Some(_) => ActivationQuantMode::Emulate,
            None => ActivationQuantMode::Off,
        };
        let batch = tokens.batch(self.shape)?.with_activation_quant(mode);
        Ok(self
            .kernel
            .experts(&self.experts, Activation::SILU, &batch)?)
    }

    /// Runs the gate: logits, scores, the experts chosen.
    pub(super) fn run_gate(&self, tokens: &Tokens) -> Result<()> {
        let (hidden, width) = (tokens.hidden.rows(), self.shape.hidden_size);
        let logits = self
            .kernel
            .gate_logits(hidden, width, &self.gate[..], None)?;
        std::hint::black_box(self.router.route(&self.kernel, &logits, None)?);
        Ok(())
    }

    /// Bytes of the experts that have tokens.
    pub(super) fn weight_bytes(&self, tokens: &Tokens) -> usize {
        tokens.experts().len() * self.expert_bytes
    }

    /// If caches keep all weights that some batches need, and as many bytes again: a probe that
    /// streams these, from where the weights are.
    pub(super) fn cache_probe(&self, batches: &[Tokens]) -> Result<Option<Probe>> {
        let used: BTreeSet<usize> = batches.iter().flat_map(Tokens::experts).collect();
        let bytes = used.len() * self.expert_bytes;
        if memory::last_cache().is_none_or(|cache| 2 * bytes > cache) {
            return Ok(None);
        }
        let mut probe = Probe::new(&self.kernel, bytes.max(1))?;
        probe.read(bytes);
        Ok(Some(probe))
    }

    /// Multiplications and additions of the experts.
    pub(super) fn operations(&self, tokens: &Tokens) -> f64 {
        2.0 * tokens.slots() as f64 * self.shape.expert_weights() as f64
    }

    /// The arithmetic whose peak bounds the layer.
    pub(super) fn arithmetic(&self) -> Arithmetic {
        self.format.arithmetic(self.act)
    }
}

/// `[num_experts, hidden_size]`
fn random_gate(shape: &Shape, rng: &mut impl Rng) -> Vec<bf16> {
    let size = 1.0 / (shape.hidden_size as f32).sqrt();
    let normal = |_| -> f32 { StandardNormal.sample(rng) };
    (0..shape.num_experts * shape.hidden_size)
        .map(normal)
        .map(|n| bf16::from_f32(n * size))
        .collect()
}

/// Refuses a layer that would not fit beside what the probe streams and some batches.
///
/// # Arguments
///
/// - `largest_batch`, `batched_tokens` - tokens of the largest batch, and of all that are there at once.
pub(super) fn check_memory(
    shape: &Shape,
    format: WeightFormat,
    largest_batch: usize,
    batched_tokens: usize,
) -> Result<()> {
    let (hidden, intermediate) = (shape.hidden_size as f64, shape.intermediate_size as f64);
    // Panels of 32 output features, of whole steps of 4 input features.
    let padded = |rows: f64, cols: f64| (rows / 32.0).ceil() * 32.0 * (cols / 4.0).ceil() * 4.0;
    let weights = 2.0 * padded(intermediate, hidden) + padded(hidden, intermediate);
    // Codes, and scales of at most an eighth of them.
    let expert = weights * format.codes().bits() as f64 / 8.0 * 9.0 / 8.0;
    let (tokens, slots) = (batched_tokens as f64, (largest_batch * shape.top_k) as f64);
    // Inputs of all batches; of the one that runs inner values, terms and output, and what was kept of
    // the one before.
    let values = tokens * hidden
        + 2.0 * (slots * (hidden + intermediate) + largest_batch as f64 * 2.0 * hidden);
    let gate = shape.num_experts as f64 * (hidden + tokens);
    // The expert that is being packed is there twice.
    let bytes = expert * (shape.num_local + 1) as f64
        + STREAM_BYTES as f64
        + size_of::<f32>() as f64 * (values + gate);
    memory::check(&format!("{shape} in {}", format.name()), bytes as usize)
}

/// A probe of the threads of a kernel.
pub(super) fn probe(kernel: &CpuKernel) -> Result<Probe> {
    memory::check("the memory that is streamed", STREAM_BYTES)?;
    Ok(Probe::new(kernel, STREAM_BYTES)?)
}
