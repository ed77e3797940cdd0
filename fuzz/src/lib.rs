//! What the fuzz targets run: functions from bytes to nothing, which panic where a promise is broken.
//!
//! The promises are those of the documentation: no panic on any input, errors in place of wrong
//! numbers, one meaning of a checkpoint on any number of ranks, one result in a batch of any size.
//! `run.sh` builds the targets and runs them, `cargo test --no-default-features` runs the same
//! functions on inputs of its own.

mod backends;
mod checkpoint;
mod config;
mod experts;
mod layers;
mod loading;
mod pick;
mod router;
mod source;
mod views;

pub use backends::{compressed, fp8, modelopt, mxfp4, unquant};
pub use checkpoint::checkpoint;
pub use config::config;
pub use experts::experts;
pub use router::router;
pub use views::views;

/// A target: its name without `fuzz_` and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("checkpoint", checkpoint),
    ("config", config),
    ("unquant", unquant),
    ("fp8", fp8),
    ("modelopt", modelopt),
    ("mxfp4", mxfp4),
    ("compressed", compressed),
    ("views", views),
    ("experts", experts),
    ("router", router),
];

// Only named crates are linked, and only linked backends are known.
use moekit_quant_compressed_tensors as _;
use moekit_quant_fp8 as _;
use moekit_quant_modelopt as _;
use moekit_quant_mxfp4 as _;
use moekit_quant_unquantized as _;
