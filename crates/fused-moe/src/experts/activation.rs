use burn::tensor::{Tensor, activation as ops};
use moekit_quant::Activation;

use crate::FusedMoeError;

/// [`Activation::apply`] in tensor operations.
///
/// # Arguments
///
/// - `gate`, `up` - `[num_rows, intermediate_size]`; the forms without gate do not look at `gate`.
pub(super) fn activate(
    activation: Activation,
    gate: Option<Tensor<2>>,
    up: Tensor<2>,
) -> Result<Tensor<2>, FusedMoeError> {
    let without_gate = match activation {
        Activation::SiluNoMul => Some(ops::silu(up.clone())),
        Activation::GeluNoMul => Some(ops::gelu(up.clone())),
        Activation::GeluTanhNoMul => Some(ops::gelu_approximate(up.clone())),
        Activation::Relu2NoMul => {
            let positive = ops::relu(up.clone());
            Some(positive.clone() * positive)
        }
        _ => None,
    };
    if let Some(output) = without_gate {
        return Ok(output);
    }
    let Some(gate) = gate else {
        return Err(FusedMoeError::Config(format!(
            "{activation:?} needs a gate projection, and the experts have none"
        )));
    };
    let clamped = |limit: Option<f32>| match limit {
        Some(l) => (gate.clone().clamp_max(l), up.clone().clamp(-l, l)),
        None => (gate.clone(), up.clone()),
    };
    Ok(match activation {
        Activation::Silu { limit } => {
            let (g, u) = clamped(limit);
            ops::silu(g) * u
        }
        Activation::Gelu { limit } => {
            let (g, u) = clamped(limit);
            ops::gelu(g) * u
        }
        Activation::GeluTanh { limit } => {
            let (g, u) = clamped(limit);
            ops::gelu_approximate(g) * u
        }
        Activation::SwigluOai { alpha, beta, limit } => {
            let (g, u) = clamped(limit);
            (u + beta) * g.clone() * ops::sigmoid(g * alpha)
        }
        Activation::SwigluStep { limit } => {
            ops::silu(gate.clone()).clamp_max(limit) * up.clone().clamp(-limit, limit)
        }
        other => {
            return Err(FusedMoeError::Config(format!(
                "the activation {other:?} is not known"
            )));
        }
    })
}
