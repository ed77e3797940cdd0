use moekit_quant::{Activation, ExpertMlp};

use crate::KernelError;
use crate::error::check_len;
use crate::experts::MlpView;

/// Checks that experts, whose fields anyone may set, fit each other and the activation, so that no
/// index in the kernels can leave its buffer.
pub(crate) fn check_experts<'a>(
    experts: impl Iterator<Item = (usize, &'a MlpView<'a>)>,
    hidden_size: usize,
    activation: Activation,
) -> Result<(), KernelError> {
    check_activation(activation)?;
    for (index, expert) in experts {
        if expert.gate.is_some() != activation.is_gated() {
            let has = if expert.gate.is_some() {
                "has a"
            } else {
                "has no"
            };
            return Err(KernelError::Activation(format!(
                "expert {index} {has} gate projection, which does not fit {activation:?}"
            )));
        }
        check_shapes(expert, hidden_size)?;
    }
    Ok(())
}

/// Checks the parts of an expert against each other.
pub(crate) fn check_mlp(expert: &ExpertMlp) -> Result<(), KernelError> {
    check_shapes(&expert.into(), expert.hidden_size())
}

fn check_shapes(expert: &MlpView<'_>, hidden_size: usize) -> Result<(), KernelError> {
    let intermediate_size = expert.intermediate_size();
    for linear in expert.gate.iter().chain([&expert.up]) {
        let [rows, cols] = linear.weight.shape();
        check_len("rows of w13", rows, intermediate_size, "[I, H]")?;
        check_len("columns of w13", cols, hidden_size, "[I, H]")?;
    }
    let [rows, cols] = expert.down.weight.shape();
    check_len("rows of w2", rows, hidden_size, "[H, I]")?;
    check_len("columns of w2", cols, intermediate_size, "[H, I]")?;
    for linear in expert.gate.iter().chain([&expert.up, &expert.down]) {
        let [rows, _] = linear.weight.shape();
        check_len(
            "bias",
            linear.bias.map_or(rows, <[f32]>::len),
            rows,
            "[out]",
        )?;
    }
    Ok(())
}

/// Checks the constants of an activation.
///
/// # Errors
///
/// If one is not finite, or a limit is negative.
pub fn check_activation(activation: Activation) -> Result<(), KernelError> {
    let (limit, constants) = match activation {
        Activation::Silu { limit }
        | Activation::Gelu { limit }
        | Activation::GeluTanh { limit } => (limit, [0.0, 0.0]),
        Activation::SwigluOai { alpha, beta, limit } => (limit, [alpha, beta]),
        Activation::SwigluStep { limit } => (Some(limit), [0.0, 0.0]),
        _ => (None, [0.0, 0.0]),
    };
    if limit.is_some_and(|l| l.is_nan() || l < 0.0) || constants.iter().any(|c| !c.is_finite()) {
        return Err(KernelError::Activation(format!(
            "the constants of {activation:?} must be finite and its limit at least 0"
        )));
    }
    Ok(())
}
