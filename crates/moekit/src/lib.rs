//! Mixture-of-Experts expert parallelism in Rust.
//!
//! moekit decides which rank of an expert-parallel group holds which expert, keeps the maps and
//! routing tables that follow, reads the experts of published checkpoints in the precision they
//! are stored in, and runs the fused layer on Burn, on one rank or many.
//!
//! This crate is the whole of it behind one name: each part is re-exported as a module, and
//! [`builtins`] links the built-in strategies and quantization backends.
//!
//! ```
//! use moekit::prelude::*;
//!
//! moekit::builtins();
//!
//! // A strategy by name, as a configuration file selects it.
//! let strategy = strategy_from_value(serde_json::json!({ "strategy": "eplb", "mode": "global" }))?;
//! let load = ExpertLoad::from_rows(&[[7.0, 1.0, 1.0, 3.0]])?;
//! let topology = Topology::new(2)?;
//! let request = PlacementRequest::new(1, 4, &topology)?
//!     .with_redundant_experts(2)?
//!     .with_load(&load)?;
//! let plan = strategy.plan(&request)?;
//!
//! // Everything that follows from it.
//! let table = RoutingTable::new(plan.layers()[0].clone(), topology, 0, 0)?;
//! assert_eq!(table.replica_counts(), [3, 1, 1, 1]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#[doc(no_inline)]
pub use burn;
#[doc(no_inline)]
pub use moekit_checkpoint as checkpoint;
#[doc(no_inline)]
pub use moekit_eval as eval;
#[doc(no_inline)]
pub use moekit_fused_moe as fused_moe;
#[doc(no_inline)]
pub use moekit_kernels as kernels;
#[doc(no_inline)]
pub use moekit_live as live;
#[doc(no_inline)]
pub use moekit_parallel as parallel;
#[doc(no_inline)]
pub use moekit_placement as placement;
#[doc(no_inline)]
pub use moekit_placement::plugin;
#[doc(no_inline)]
pub use moekit_quant as quant;
#[doc(no_inline)]
pub use moekit_routing as routing;

#[doc(inline)]
pub use moekit_placement::link_plugins;

/// The built-in placement strategies.
pub mod strategies {
    #[doc(no_inline)]
    pub use moekit_strategy_adaptive as adaptive;
    #[doc(no_inline)]
    pub use moekit_strategy_eplb as eplb;
    #[doc(no_inline)]
    pub use moekit_strategy_fixed as fixed;
    #[doc(no_inline)]
    pub use moekit_strategy_linear as linear;
    #[doc(no_inline)]
    pub use moekit_strategy_round_robin as round_robin;
}

/// The built-in quantization backends.
pub mod quant_backends {
    #[doc(no_inline)]
    pub use moekit_quant_compressed_tensors as compressed_tensors;
    #[doc(no_inline)]
    pub use moekit_quant_fp8 as fp8;
    #[doc(no_inline)]
    pub use moekit_quant_modelopt as modelopt;
    #[doc(no_inline)]
    pub use moekit_quant_mxfp4 as mxfp4;
    #[doc(no_inline)]
    pub use moekit_quant_unquantized as unquantized;
}

#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct ReadmeExamples;

/// The names that most programs need.
pub mod prelude {
    #[doc(no_inline)]
    pub use crate::placement::{
        ExpertLoad, ExpertMapManager, ExpertMapManagerConfig, ModelPlacement, PlacementRequest,
        PlacementStrategy, TopologyUpdate, strategy_from_value,
    };
    #[doc(no_inline)]
    pub use crate::routing::{
        ExpertRouting, LocalExpert, LogicalExpert, PhysicalExpert, Placement, Rank,
        ReplicaSelector, RoutingTable, RoutingTableProvider, Topology,
    };
}

/// Links the built-in strategies and quantization backends into this program.
///
/// The linker drops a crate that nothing refers to; this refers to each. Call it once, before the
/// first look-up by name.
pub fn builtins() {
    link_plugins!(
        strategies::linear,
        strategies::round_robin,
        strategies::eplb,
        strategies::fixed,
        strategies::adaptive,
        quant_backends::unquantized,
        quant_backends::fp8,
        quant_backends::modelopt,
        quant_backends::modelopt::mxfp8,
        quant_backends::mxfp4,
        quant_backends::compressed_tensors,
    );
}
