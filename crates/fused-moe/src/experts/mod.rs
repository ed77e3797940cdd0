//! The experts of one rank, trainable or packed.

mod activation;
mod packed;
mod quantize;
mod tensor_ops;
mod trainable;

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use moekit_kernels::{ActivationQuantMode, CpuKernel, ExpertBatch, ExpertSet, RouterWeight};
use moekit_quant::{Activation, ActivationQuant, ExpertWeights};

pub use self::packed::PackedExperts;
pub(crate) use self::quantize::features_of_a_scale;
pub(crate) use self::tensor_ops::TensorBatch;
pub(crate) use self::trainable::ExpertShape;
pub use self::trainable::TrainableExperts;
use crate::FusedMoeError;
use crate::dispatch::ExpertOutputs;

/// The experts of one rank: `down(activation(gate(x), up(x)))` each.
///
/// Their weights live once: as Burn parameters, or packed in the precision of a checkpoint.
#[derive(Module, Debug)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "there is one per layer")]
pub enum Experts {
    /// Burn parameters: initialized, differentiable, on any device.
    Trainable(TrainableExperts),
    /// Packed weights, not parameters: for a device other than the CPU, and under autodiff, one
    /// expert at a time is dequantized.
    Packed(PackedExperts),
}

/// How the outputs of a token's experts are added up over ranks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reduction {
    /// Each rank adds up its own experts, the token's rank adds up ranks: least traffic. The last
    /// bits depend on which ranks the experts are on.
    #[default]
    PerRank,
    /// The token's rank adds up all experts in order of descending weight: the same bits on any
    /// number of ranks and for any placement.
    PerSlot,
}

/// What every kind of expert is computed with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ExpertMath {
    pub(crate) activation: Activation,
    pub(crate) activation_quant: ActivationQuantMode,
    pub(crate) router_weight: RouterWeight,
}

impl Experts {
    /// Packed experts, rearranged for the CPU kernels.
    ///
    /// # Errors
    ///
    /// Those of [`PackedExperts::new`].
    pub fn packed(weights: ExpertWeights) -> Result<Self, FusedMoeError> {
        Ok(Self::Packed(PackedExperts::new(weights)?))
    }

    /// Local experts, those of fused shared experts included.
    pub fn num_local_experts(&self) -> usize {
        match self {
            Self::Trainable(experts) => experts.num_local_experts(),
            Self::Packed(experts) => experts.experts().num_local_experts(),
        }
    }

    /// Whether gradients are wanted of these experts.
    pub(crate) fn is_autodiff(&self) -> bool {
        match self {
            Self::Trainable(experts) => experts.is_autodiff(),
            Self::Packed(_) => false,
        }
    }

    /// The experts by the CPU kernels.
    pub(crate) fn forward_rows(
        &self,
        kernel: &CpuKernel,
        math: ExpertMath,
        batch: ExpertBatch<'_>,
        reduction: Reduction,
    ) -> Result<ExpertOutputs, FusedMoeError> {
        let view;
        let experts = match self {
            Self::Trainable(experts) => {
                view = experts.view(math.activation)?;
                ExpertSet::Weights(&view)
            }
            Self::Packed(experts) => ExpertSet::Prepared(experts.experts()),
        };
        let batch = batch
            .with_router_weight(math.router_weight)
            .with_activation_quant(math.activation_quant);
        Ok(match reduction {
            Reduction::PerRank => {
                ExpertOutputs::Summed(kernel.experts(experts, math.activation, &batch)?)
            }
            Reduction::PerSlot => {
                ExpertOutputs::PerSlot(kernel.experts_per_slot(experts, math.activation, &batch)?)
            }
        })
    }

    /// One expert as tensors of a device, `f32`.
    pub(crate) fn tensors(
        &self,
        expert: usize,
        math: ExpertMath,
        device: &Device,
    ) -> Result<ExpertTensors, FusedMoeError> {
        match self {
            Self::Trainable(experts) => Ok(experts.tensors(expert, math.activation, device)),
            Self::Packed(experts) => experts.tensors(expert, math.activation_quant, device),
        }
    }
}

/// One linear: weight `[out, in]`, bias `[1, out]`.
pub(crate) struct LinearTensors {
    pub(crate) weight: Tensor<2>,
    pub(crate) bias: Option<Tensor<2>>,
    /// How its input is to be quantized.
    pub(crate) input_quant: Option<ActivationQuant>,
}

impl LinearTensors {
    /// `[num_rows, in]` to `[num_rows, out]`.
    pub(crate) fn forward(self, x: Tensor<2>) -> Tensor<2> {
        let y = x.matmul(self.weight.transpose());
        match self.bias {
            Some(bias) => y + bias,
            None => y,
        }
    }
}

/// One expert.
pub(crate) struct ExpertTensors {
    pub(crate) gate: Option<LinearTensors>,
    pub(crate) up: LinearTensors,
    pub(crate) down: LinearTensors,
}
