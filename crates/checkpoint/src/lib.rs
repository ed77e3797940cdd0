//! Hugging Face Mixture-of-Experts checkpoints: model families and memory-mapped safetensors.
//!
//! [`Checkpoint::open`] maps the files of a directory, [`Checkpoint::model`] says what its MoE
//! layers are, [`Checkpoint::quantization_config`] which backend reads them. A family is one small
//! function from `config.json` to [`MoeModelSpec`](moekit_quant::MoeModelSpec); see
//! [`register_family!`].

mod checkpoint;
mod config;
mod error;
mod families;
mod family;
mod json;
mod parts;
mod quant_config;
mod shard;

pub use checkpoint::Checkpoint;
pub use config::ModelConfig;
pub use error::CheckpointError;
pub use family::{Family, model_types};

#[doc(hidden)]
pub mod __private {
    pub use inventory;
}
