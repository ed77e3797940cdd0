//! The fused Mixture-of-Experts layer on Burn.

mod config;
mod dispatch;
mod error;
mod experts;
mod gate;
mod host;
mod init;
mod layer;
mod pass;
mod routing;
mod shared;

pub use config::{Compute, FusedMoeConfig, GateTensors, SharedExpertsConfig};
pub use dispatch::{
    DispatchHandle, Dispatched, ExpertOutputs, HiddenRows, Local, RankTokens, RoutedTokens,
    TokenDispatcher,
};
pub use error::FusedMoeError;
pub use experts::{Experts, PackedExperts, Reduction, TrainableExperts};
pub use gate::{CustomRouting, Gate};
pub use layer::{ForwardOptions, FusedMoe, FusedMoeOutput};
pub use routing::LayerRouting;
pub use shared::SharedExperts;

// What the layer's interface speaks of.
#[doc(no_inline)]
pub use moekit_kernels::{CpuKernel, Routed, Rows};
