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
    let gate = match (gate, activation.is_gated()) {
        (Some(gate), true) => gate,
        (None, false) => return without_gate(activation, up),
        (gate, _) => {
            let has = if gate.is_some() { "a" } else { "no" };
            return Err(FusedMoeError::Config(format!(
                "the experts have {has} gate projection, which does not fit {activation:?}"
            )));
        }
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
        other => return Err(unknown(other)),
    })
}

fn without_gate(activation: Activation, up: Tensor<2>) -> Result<Tensor<2>, FusedMoeError> {
    Ok(match activation {
        Activation::SiluNoMul => ops::silu(up),
        Activation::GeluNoMul => ops::gelu(up),
        Activation::GeluTanhNoMul => ops::gelu_approximate(up),
        Activation::Relu2NoMul => {
            let positive = ops::relu(up);
            positive.clone() * positive
        }
        other => return Err(unknown(other)),
    })
}

fn unknown(activation: Activation) -> FusedMoeError {
    FusedMoeError::Config(format!("the activation {activation:?} is not known"))
}
