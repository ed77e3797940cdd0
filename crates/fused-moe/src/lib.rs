//! The fused Mixture-of-Experts layer on Burn.
//!
//! A [`FusedMoe`] is one call on one rank and on many: the [`Gate`] chooses logical experts, a
//! replica selector their slots, a [`TokenDispatcher`] carries tokens to the ranks that own them,
//! [`Experts`] compute, and the dispatcher carries the results back. [`FusedMoeConfig`] makes the
//! layer, of Burn parameters or over the packed experts of a checkpoint.
//!
//! The same forward pass exists twice: by the kernels of [`moekit_kernels`], which read the memory
//! of CPU tensors in place, and in tensor operations, on every device and under autodiff.
//!
//! ```
//! use burn::tensor::{Device, Distribution, Tensor};
//! use moekit_fused_moe::{ForwardOptions, FusedMoeConfig, SharedExpertsConfig};
//!
//! let device = Device::flex();
//! let layer = FusedMoeConfig::new(16, 32, 8, 2)
//!     .with_renormalize(true)
//!     .with_shared_experts(SharedExpertsConfig::new(32))
//!     .init(&device)?;
//!
//! let hidden = Tensor::random([5, 16], Distribution::Default, &device);
//! let got = layer.forward_detailed(hidden.clone(), ForwardOptions::new())?;
//! assert_eq!(got.output.dims(), [5, 16]);
//! assert_eq!(got.topk_ids.len(), 5 * 2);
//! assert_eq!(got.load.counts().iter().sum::<u64>(), 5 * 2);
//!
//! // Under autodiff: the same numbers, and gradients.
//! let hidden = hidden.autodiff().require_grad();
//! let output = layer.forward(hidden.clone())?;
//! let gradients = output.sum().backward();
//! assert_eq!(hidden.grad(&gradients).map(|g| g.dims()), Some([5, 16]));
//! # Ok::<(), moekit_fused_moe::FusedMoeError>(())
//! ```

mod config;
mod dispatch;
mod error;
mod experts;
mod gate;
mod gate_tensors;
mod host;
mod init;
mod layer;
mod pass;
mod routing;
mod shard;
mod shared;

pub use config::{Compute, FusedMoeConfig, SharedExpertsConfig};
pub use dispatch::{
    DispatchHandle, Dispatched, ExpertOutputs, HiddenRows, Local, RankTokens, RoutedTokens,
    TokenDispatcher,
};
pub use error::FusedMoeError;
pub use experts::{Experts, PackedExperts, Reduction, TrainableExperts};
pub use gate::{CustomRouting, Gate};
pub use gate_tensors::GateTensors;
pub use layer::{ForwardOptions, FusedMoe, FusedMoeOutput};
pub use routing::LayerRouting;
pub use shared::SharedExperts;

// What the layer's interface speaks of.
#[doc(no_inline)]
pub use moekit_kernels::{
    ActivationQuantMode, CpuKernel, PreparedExpert, PreparedExperts, Routed, Rows,
};
