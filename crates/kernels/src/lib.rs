//! The kernels of a Mixture-of-Experts layer on CPUs: the gate, and grouped experts over packed
//! weights.
//!
//! Weights are [rearranged once](PreparedExperts) and stay in the format of their checkpoint; the
//! [instruction set](Isa) is chosen at run time. Sums are in `f32`, in an order that depends on
//! nothing but the shape of the layer: on one instruction set the same row gives the same bits alone
//! and in a batch of any size, on any number of threads.
//!
//! ```
//! use std::sync::Arc;
//!
//! use moekit_kernels::{CpuKernel, ExpertBatch};
//! use moekit_quant::{Activation, CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix};
//!
//! // One expert, H = 2, I = 1: gate [1, 0], up [0, 1], down [1, 2].
//! let linear = |shape, values: &[f32]| {
//!     let codes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
//!     PackedMatrix::contiguous(CodeFormat::F32, shape, codes).map(ExpertLinear::new)
//! };
//! let gate = linear([1, 2], &[1.0, 0.0])?;
//! let up = linear([1, 2], &[0.0, 1.0])?;
//! let down = linear([2, 1], &[1.0, 2.0])?;
//! let expert = Arc::new(ExpertMlp::new(Some(gate), up, down)?);
//! let experts = ExpertWeights::new(2, 1, vec![expert])?;
//!
//! // Two rows with one slot each; the second row's expert is on another rank.
//! let batch = ExpertBatch::new(&[2.0, 3.0, 4.0, 5.0][..], 2, &[0, -1], &[0.5, 0.5], 1)?;
//! // (up + 0) * gate * sigmoid(0 * gate) = 3 * 2 * 0.5
//! let activation = Activation::SwigluOai { alpha: 0.0, beta: 0.0, limit: None };
//! let output = CpuKernel::default().experts(&experts, activation, &batch)?;
//! assert_eq!(output, [1.5, 3.0, 0.0, 0.0]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activation_quant;
mod affinity;
mod batch;
mod check;
mod dequantize;
mod error;
mod experts;
mod formats;
mod gate;
mod isa;
mod kernel;
mod memory;
mod prepared;
pub mod probe;
mod rows;
mod simd;
mod team;
#[cfg(test)]
mod test_weights;
mod tile;

pub use activation_quant::ActivationQuantMode;
pub use batch::{ExpertBatch, RouterWeight};
pub use check::check_activation;
pub use dequantize::dequantize;
pub use error::KernelError;
pub use experts::ExpertSet;
pub use gate::{Routed, Router};
pub use isa::Isa;
pub use kernel::CpuKernel;
pub use prepared::{PreparedExpert, PreparedExperts, PreparedLinear, PreparedMatrix};
pub use rows::Rows;
