use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use moekit_kernels::{ActivationQuantMode, CpuKernel, Rows};
use moekit_quant::{ActivationQuant, ExpertWeights};

use crate::FusedMoeError;
use crate::experts::{Experts, TrainableExperts};
use crate::host::{Floats, float_tensor};
use crate::shard::Sharding;

/// The experts that every token passes: `scaling * sigmoid(gate(x)) * mlp(x)`, without gate
/// `scaling * mlp(x)`.
#[derive(Module, Debug)]
pub struct SharedExperts {
    /// One MLP as wide as all shared experts, or this rank's part of it; `None` where they are fused
    /// into the routed experts as extra local slots.
    pub mlp: Option<Experts>,
    /// `[1, hidden_size]`
    pub gate: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(crate) scaling: f32,
    /// Which part of the whole MLP `mlp` is; `None` if it is all of it.
    #[module(skip)]
    pub(crate) sharding: Option<Sharding>,
}

impl SharedExperts {
    /// What the output is multiplied by, for each row: `[num_rows]`.
    pub(crate) fn row_weights(
        &self,
        kernel: &CpuKernel,
        hidden: Rows<'_>,
        hidden_size: usize,
    ) -> Result<Vec<f32>, FusedMoeError> {
        let Some(gate) = &self.gate else {
            return Ok(vec![self.scaling; hidden.len() / hidden_size.max(1)]);
        };
        let gate = Floats::new(gate.val())?;
        let mut weights = kernel.gate_logits(hidden, hidden_size, gate.as_slice(), None)?;
        weights
            .iter_mut()
            .for_each(|w| *w = self.scaling / (1.0 + (-*w).exp()));
        Ok(weights)
    }

    /// [`SharedExperts::row_weights`] in tensor operations: `[num_rows, 1]`.
    pub(crate) fn tensor_weights(&self, hidden: &Tensor<2>) -> Tensor<2> {
        match &self.gate {
            Some(gate) => {
                let logits = hidden.clone().matmul(gate.val().transpose());
                activation::sigmoid(logits) * self.scaling
            }
            None => {
                let rows = hidden.dims()[0];
                float_tensor(vec![self.scaling; rows], [rows, 1], &hidden.device())
            }
        }
    }
}

/// The MLP of the shared experts before it is known which part of it this rank computes.
pub(crate) enum SharedMlp {
    /// As its one expert.
    Trainable(Box<TrainableExperts>),
    /// As its one expert, as the checkpoint has it.
    Packed(ExpertWeights),
}

impl SharedMlp {
    /// How the input of its down projection is quantized.
    pub(crate) fn down_quant(&self, mode: ActivationQuantMode) -> Option<ActivationQuant> {
        match self {
            Self::Trainable(_) => None,
            Self::Packed(weights) => {
                let mlp = weights.experts.first()?;
                mode.input_quant(mlp.down.input_quant)
            }
        }
    }

    /// All of it.
    pub(crate) fn whole(self) -> Result<Experts, FusedMoeError> {
        match self {
            Self::Trainable(experts) => Ok(Experts::Trainable(*experts)),
            Self::Packed(weights) => Experts::packed(weights),
        }
    }
}
