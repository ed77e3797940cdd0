use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use moekit_kernels::{ActivationQuantMode, PreparedExpert, PreparedExperts, PreparedLinear};
use moekit_quant::{ExpertWeights, QuantError};

use super::{ExpertTensors, LinearTensors};
use crate::FusedMoeError;
use crate::host::float_tensor;

/// Experts in the precision of their checkpoint, in the order in which the CPU kernels read them.
/// They are not parameters of the module: records and optimizers do not see them, and moving the
/// module to another device leaves them where they are.
#[derive(Module, Debug)]
pub struct PackedExperts {
    #[module(skip)]
    experts: Arc<PreparedExperts>,
}

impl PackedExperts {
    /// Rearranges the weights of a checkpoint, each expert once; it is freed before the next one
    /// unless someone else holds it.
    ///
    /// # Errors
    ///
    /// If the parts of an expert do not fit each other, or there is no memory.
    pub fn new(weights: ExpertWeights) -> Result<Self, FusedMoeError> {
        Ok(Self::from_prepared(PreparedExperts::new(weights)?))
    }

    /// Experts that have been rearranged already, as those of another rank have.
    pub fn from_prepared(experts: impl Into<Arc<PreparedExperts>>) -> Self {
        Self {
            experts: experts.into(),
        }
    }

    /// The experts. Whoever keeps one of them shares its weights.
    pub fn experts(&self) -> &Arc<PreparedExperts> {
        &self.experts
    }

    pub(super) fn expert(&self, expert: usize) -> Option<&PreparedExpert> {
        self.experts.experts().get(expert).map(|e| &**e)
    }

    pub(super) fn tensors(
        &self,
        expert: usize,
        mode: ActivationQuantMode,
        device: &Device,
    ) -> Result<ExpertTensors, FusedMoeError> {
        let expert = self.expert(expert).ok_or_else(|| QuantError::Argument {
            what: "local expert",
            got: expert,
            expected: format!("less than {}", self.experts.num_local_experts()),
        })?;
        let linear = |l: &PreparedLinear| linear(l, mode, device);
        Ok(ExpertTensors {
            gate: expert.gate().map(linear),
            up: linear(expert.up()),
            down: linear(expert.down()),
        })
    }
}

fn linear(linear: &PreparedLinear, mode: ActivationQuantMode, device: &Device) -> LinearTensors {
    let weight = linear.weight();
    let shape = [weight.rows(), weight.cols()];
    LinearTensors {
        weight: float_tensor(weight.dequantize(), shape, device),
        bias: linear
            .bias()
            .map(|bias| float_tensor(bias.to_vec(), [1, bias.len()], device)),
        input_quant: mode.input_quant(linear.input_quant()),
    }
}
