mod cut;
mod floats;
mod tensors;

use crate::spec::FusedTensor;
use crate::{ModuleList, QuantError, TensorSource};

pub use floats::{check_floats, load_float_linear, read_floats};
pub use tensors::{F8E4M3_SCALES, F8E8M0_SCALES, FLOAT_SCALES};

/// Which linear of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Projection {
    /// The gate half of w13.
    Gate,
    /// The up half of w13.
    Up,
    /// w2.
    Down,
}

/// Where one linear of one expert is in a checkpoint.
///
/// The linear may be a tensor of its own, or a part of one: an expert of a stack, the rows of one
/// half, every other row, a transposed matrix. A backend asks a site for the tensors of its format
/// by their companion name (`weight`, `weight_scale`) and gets the part that belongs to the linear,
/// as a view, with type and shape checked; only the bytes of that part are read.
#[derive(Clone, Debug)]
pub struct LinearSite {
    pub(crate) module: String,
    pub(crate) is_module: bool,
    pub(crate) projection: Projection,
    /// `[out, in]` of the linear.
    pub(crate) shape: [usize; 2],
    /// `[out, in]` of the stored matrix that the linear is a part of.
    pub(crate) stored: [usize; 2],
    /// First row and column within the stored matrix.
    pub(crate) start: [usize; 2],
    /// Distance of the linear's rows within the stored matrix.
    pub(crate) row_step: usize,
    /// Whether the stored matrix lies as `[in, out]`.
    pub(crate) transposed: bool,
    /// Index and number of the stored matrices of one tensor.
    pub(crate) stack: Option<(usize, usize)>,
    pub(crate) bias: Option<String>,
}

impl LinearSite {
    pub(crate) fn own_tensor(module: String, projection: Projection, shape: [usize; 2]) -> Self {
        Self {
            module,
            is_module: true,
            projection,
            shape,
            stored: shape,
            start: [0, 0],
            row_step: 1,
            transposed: false,
            stack: None,
            bias: None,
        }
    }

    pub(crate) fn in_stack(
        tensor: &FusedTensor,
        projection: Projection,
        shape: [usize; 2],
        stack: (usize, usize),
    ) -> Self {
        Self {
            is_module: tensor.is_module,
            transposed: tensor.transposed,
            stack: Some(stack),
            bias: tensor.bias.clone(),
            ..Self::own_tensor(tensor.name.clone(), projection, shape)
        }
    }

    /// The module (or fused parameter) that holds the linear: what exclusion lists and targets of
    /// quantizers match.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Which linear of its expert this is.
    pub fn projection(&self) -> Projection {
        self.projection
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// `[out, in]` of the stored matrix that the linear is a part of.
    pub fn stored_shape(&self) -> [usize; 2] {
        self.stored
    }

    /// First row and column of the linear within the stored matrix.
    pub fn start(&self) -> [usize; 2] {
        self.start
    }

    /// Whether the linear shares its tensors with other experts.
    pub fn is_stacked(&self) -> bool {
        self.stack.is_some()
    }

    /// The same linear in a format that stores `[out, in]`, however the unquantized one lies.
    #[must_use]
    pub fn untransposed(&self) -> Self {
        Self {
            transposed: false,
            ..self.clone()
        }
    }

    /// Full name of a companion tensor: `weight`, `weight_scale`, ...
    pub fn tensor(&self, companion: &str) -> String {
        match (self.is_module, companion) {
            (true, _) => format!("{}.{companion}", self.module),
            (false, "weight") => self.module.clone(),
            (false, _) => format!("{}_{companion}", self.module),
        }
    }

    /// Whether the `weight` is stored as floats of 16 or 32 bits: the linear is not quantized,
    /// whatever the lists of the configuration say.
    pub fn is_float(&self, tensors: &dyn TensorSource) -> bool {
        let info = tensors.info(&self.tensor("weight"));
        info.is_some_and(|info| floats::float_format(&info).is_some())
    }

    /// Whether the linear is one of those that a quantizer left alone: stored as floats, and in the
    /// list of the configuration. A list may name more than was left alone (`model.layers.1*` names
    /// layer 10, too); what is stored decides.
    ///
    /// # Errors
    ///
    /// If a pattern of the list takes too long.
    pub fn is_excluded(
        &self,
        tensors: &dyn TensorSource,
        list: &ModuleList,
    ) -> Result<bool, QuantError> {
        Ok(self.is_float(tensors) && list.contains(&self.module)?)
    }

    /// An error of a backend that cannot read the linear.
    pub fn unsupported(&self, what: &str, supported: &str) -> QuantError {
        QuantError::Unsupported {
            what: format!("{what} in `{}`", self.module),
            supported: supported.to_owned(),
        }
    }
}
