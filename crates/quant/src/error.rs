use moekit_plugin::PluginError;
use thiserror::Error;

/// Why the experts of a checkpoint cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum QuantError {
    /// The checkpoint lacks a tensor.
    #[error("tensor `{tensor}` is missing: {needed}")]
    MissingTensor {
        /// Its full name.
        tensor: String,
        /// What it is needed for.
        needed: String,
    },
    /// A tensor holds elements of another type.
    #[error("tensor `{tensor}` is {got}, expected {expected}")]
    Dtype {
        /// Its full name.
        tensor: String,
        /// The type found.
        got: String,
        /// The types that would be right.
        expected: String,
    },
    /// A tensor has another shape.
    #[error("tensor `{tensor}` has shape {got:?}, expected {expected}")]
    Shape {
        /// Its full name.
        tensor: String,
        /// The shape found.
        got: Vec<usize>,
        /// The shapes that would be right.
        expected: String,
    },
    /// A tensor holds other numbers than it must.
    #[error("tensor `{tensor}` holds {got}, expected {expected}")]
    Value {
        /// Its full name.
        tensor: String,
        /// The numbers found.
        got: String,
        /// The numbers that would be right.
        expected: String,
    },
    /// Bytes outside of a tensor were asked for.
    #[error("bytes {start}..{end} of tensor `{tensor}` do not exist: it has {len} bytes")]
    Range {
        /// Its full name.
        tensor: String,
        /// First byte asked for.
        start: usize,
        /// End of the bytes asked for.
        end: usize,
        /// Bytes of the tensor.
        len: usize,
    },
    /// A tensor's bytes could not be read.
    #[error("tensor `{tensor}` cannot be read")]
    Read {
        /// Its full name.
        tensor: String,
        /// What the source says.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A scale that cannot be right.
    #[error("scale {value} at {at:?} of `{name}` cannot be right: {reason}")]
    Scale {
        /// Full name of the tensor of scales, or of the linear.
        name: String,
        /// Index within the scales of the linear.
        at: Vec<usize>,
        /// The value found.
        value: f32,
        /// Why it is refused.
        reason: &'static str,
    },
    /// A matrix whose parts do not fit each other.
    #[error("a [{rows}, {cols}] matrix of {format} codes cannot be made: {reason}")]
    Matrix {
        /// Rows asked for.
        rows: usize,
        /// Columns asked for.
        cols: usize,
        /// Format of the codes.
        format: &'static str,
        /// What does not fit.
        reason: String,
    },
    /// A row that the matrix lacks, or a buffer of another length.
    #[error("{what} is {got}, expected {expected}")]
    Argument {
        /// Which argument.
        what: &'static str,
        /// Its value.
        got: usize,
        /// What would be right.
        expected: String,
    },
    /// A layer that no gate can serve.
    #[error("MoE layer {layer}: {what} is {got}, expected {expected}")]
    Layer {
        /// Index of the layer.
        layer: usize,
        /// Which number.
        what: &'static str,
        /// Its value.
        got: usize,
        /// What would be right.
        expected: String,
    },
    /// The routing table and the layer disagree.
    #[error(
        "the routing table has {table} logical experts, layer {layer} of the checkpoint has {spec}"
    )]
    ExpertCount {
        /// Index of the layer.
        layer: usize,
        /// Experts of the checkpoint's layer.
        spec: usize,
        /// Experts of the table.
        table: usize,
    },
    /// The routing table lacks the rank that loads.
    #[error("rank {rank} does not exist: the routing table has ranks 0..{num_ranks}")]
    UnknownRank {
        /// The rank.
        rank: usize,
        /// Ranks of the table.
        num_ranks: usize,
    },
    /// Fused shared experts that the layer cannot give.
    #[error("layer {layer} cannot fuse {num_shared} shared experts: {reason}")]
    SharedExperts {
        /// Index of the layer.
        layer: usize,
        /// Shared experts that the routing table wants as local slots.
        num_shared: usize,
        /// Why not.
        reason: String,
    },
    /// A pattern of an exclusion or target list that is none, or takes too long.
    #[error("pattern `{pattern}` of a list of modules: {message}")]
    Pattern {
        /// The pattern.
        pattern: String,
        /// What is wrong.
        message: String,
    },
    /// `quantization_config` is not what its `quant_method` says.
    #[error("quantization_config of `{method}`: {message}")]
    Config {
        /// Its `quant_method`.
        method: String,
        /// What is wrong, and what would be right.
        message: String,
    },
    /// A `quantization_config` that does not say of which backend it is.
    #[error(
        "`quant_method` of quantization_config is {}, expected the name of a quantization backend; \
         linked are: {}",
        got.as_ref().map_or("missing".to_owned(), ToString::to_string),
        linked.join(", ")
    )]
    QuantMethod {
        /// The value found.
        got: Option<serde_json::Value>,
        /// The backends that this program links.
        linked: Vec<&'static str>,
    },
    /// Something that the format defines and the backend cannot do.
    #[error("{what} is not supported; supported: {supported}")]
    Unsupported {
        /// What the checkpoint asks for.
        what: String,
        /// What there is.
        supported: String,
    },
    /// No such backend, or two of one name.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

impl QuantError {
    pub(crate) fn matrix(
        shape: [usize; 2],
        format: &'static str,
        reason: impl Into<String>,
    ) -> Self {
        Self::Matrix {
            rows: shape[0],
            cols: shape[1],
            format,
            reason: reason.into(),
        }
    }
}
