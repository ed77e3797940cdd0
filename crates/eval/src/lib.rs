//! Load and placement files, workloads and simulation.

pub mod engine_file;
mod error;
mod file;
pub mod load_file;
pub mod placement_file;
pub mod workload;

pub use error::EvalError;
pub use file::write_whole;
