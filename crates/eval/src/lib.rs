//! The tools around planning: what users bring, what they take away, and how to try it first.
//!
//! - [`load_file`] reads the expert load that serving engines record, and writes it.
//! - [`placement_file`] reads and writes placements, [`engine_file`] writes them for other engines.
//! - [`workload`] makes loads to order, [`simulate`] runs a strategy over a load step by step.
//!
//! ```
//! use moekit_eval::load_file;
//! use moekit_eval::workload::{Profile, Workload};
//!
//! # let folder = tempfile::tempdir()?;
//! let path = folder.path().join("load.npy");
//! let trace = Workload::new("zipf:1.2".parse()?, 64, 4, 10, 8192)?.with_seed(1).generate()?;
//! load_file::write(&path, &trace.into())?;
//! assert_eq!(load_file::read(&path)?.shape(), [10, 4, 64]);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod engine_file;
mod error;
mod file;
pub mod load_file;
pub mod placement_file;
pub mod simulate;
pub mod workload;

pub use error::EvalError;
pub use file::write_whole;
