use std::path::PathBuf;

use moekit_quant::QuantError;
use thiserror::Error;

/// Why a checkpoint cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// A file that is there cannot be read.
    #[error("cannot read {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The directory lacks something.
    #[error("{} is not a checkpoint: {missing}", dir.display())]
    NotACheckpoint {
        /// The directory.
        dir: PathBuf,
        /// What is missing.
        missing: String,
    },
    /// A file that is larger than it can rightly be.
    #[error("{} has {size} bytes, more than the {limit} that such a file may have", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Largest size in bytes.
        limit: u64,
    },
    /// A file that is not the JSON that it should be.
    #[error("{} is not valid: {message}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong, and where.
        message: String,
    },
    /// A safetensors file whose header or size is wrong.
    #[error("{} is not a whole safetensors file: {message}", path.display())]
    Safetensors {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The index of a sharded checkpoint and its shards disagree.
    #[error("{}: {message}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A configuration without a needed key, or with a value that is none.
    #[error("config.json: `{key}` is {got}, expected {expected}")]
    Config {
        /// The key, or the keys that would do.
        key: String,
        /// The value found, or `missing`.
        got: String,
        /// What would be right.
        expected: String,
    },
    /// No family reads the model.
    #[error(
        "unknown model_type `{model_type}`{}; known are: {}. A family file says, from config.json: \
         the number of experts, experts per token and sizes, which layers are MoE layers, the names \
         and layout of the experts' tensors, the router (scoring function, renormalization, groups, \
         biases, scaling), the activation and the shared experts. A family of another crate \
         registers with `moekit_checkpoint::register_family!` and is linked by \
         `use the_crate as _;` in the program",
        nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default(),
        known.join(", ")
    )]
    UnknownFamily {
        /// `model_type` of the configuration.
        model_type: String,
        /// The known one that is most like it.
        nearest: Option<String>,
        /// All that are known.
        known: Vec<String>,
    },
    /// Two families read one model type.
    #[error("two families read model_type `{model_type}`: one from {first}, one from {second}")]
    DuplicateFamily {
        /// The model type.
        model_type: String,
        /// Crate of one.
        first: String,
        /// Crate of the other.
        second: String,
    },
    /// A variant of a family that cannot be computed rightly.
    #[error("model_type `{model_type}`: {what} is not supported; supported: {supported}")]
    Unsupported {
        /// `model_type` of the configuration.
        model_type: String,
        /// What the configuration asks for.
        what: String,
        /// What there is.
        supported: String,
    },
    /// The numbers of a layer do not fit each other.
    #[error(transparent)]
    Layer(#[from] QuantError),
}
