use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use moekit_kernels::{ActivationQuantMode, dequantize};
use moekit_quant::{ExpertLinear, ExpertWeights, QuantError};

use super::{ExpertTensors, LinearTensors};
use crate::FusedMoeError;
use crate::host::float_tensor;

/// Experts in the precision of their checkpoint. They are not parameters of the module: records and
/// optimizers do not see them, and moving the module to another device leaves them where they are.
#[derive(Module, Debug)]
pub struct PackedExperts {
    #[module(skip)]
    weights: Arc<ExpertWeights>,
}

impl PackedExperts {
    /// Shares the weights.
    pub fn new(weights: Arc<ExpertWeights>) -> Self {
        Self { weights }
    }

    /// The weights.
    pub fn weights(&self) -> &Arc<ExpertWeights> {
        &self.weights
    }

    pub(super) fn tensors(
        &self,
        expert: usize,
        mode: ActivationQuantMode,
        device: &Device,
    ) -> Result<ExpertTensors, FusedMoeError> {
        let experts = &self.weights.experts;
        let expert = experts.get(expert).ok_or_else(|| QuantError::Argument {
            what: "local expert",
            got: expert,
            expected: format!("less than {}", experts.len()),
        })?;
        let linear = |l: &ExpertLinear| linear(l, mode, device);
        Ok(ExpertTensors {
            gate: expert.gate.as_ref().map(linear),
            up: linear(&expert.up),
            down: linear(&expert.down),
        })
    }
}

fn linear(linear: &ExpertLinear, mode: ActivationQuantMode, device: &Device) -> LinearTensors {
    let shape = [linear.weight.rows(), linear.weight.cols()];
    LinearTensors {
        weight: float_tensor(dequantize(&linear.weight), shape, device),
        bias: linear
            .bias
            .as_ref()
            .map(|bias| float_tensor(bias.clone(), [1, bias.len()], device)),
        input_quant: mode.input_quant(linear),
    }
}
