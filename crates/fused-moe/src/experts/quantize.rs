use burn::tensor::Tensor;
use moekit_kernels::ActivationQuantMode;
use moekit_quant::ActivationQuant;

use super::Experts;
use crate::FusedMoeError;
use crate::host::{Floats, float_tensor};

/// The rows of a tensor quantized and dequantized, through host memory: to the bit what
/// [`ActivationQuant::apply`] makes of them.
pub(super) fn quantized(
    x: Tensor<2>,
    quant: Option<ActivationQuant>,
) -> Result<Tensor<2>, FusedMoeError> {
    let Some(quant) = quant else {
        return Ok(x);
    };
    if x.is_autodiff() {
        return Err(FusedMoeError::ActivationQuantAutodiff);
    }
    let (shape, device) = (x.dims(), x.device());
    let mut values = Floats::new(x)?.as_slice().to_vec();
    for row in values.chunks_mut(shape[1].max(1)) {
        quant.apply(row);
    }
    Ok(float_tensor(values, shape, &device))
}

impl Experts {
    /// How the input of the down projection of an expert is quantized.
    pub(crate) fn down_quant(
        &self,
        expert: usize,
        mode: ActivationQuantMode,
    ) -> Option<ActivationQuant> {
        match self {
            Self::Trainable(_) => None,
            Self::Packed(experts) => {
                let expert = experts.expert(expert)?;
                mode.input_quant(expert.down().input_quant())
            }
        }
    }

    /// Makes sure that the last `num_fused` experts, which are the parts of one shared MLP, can
    /// quantize their part of an intermediate row as the MLP would the whole.
    pub(crate) fn check_fused(
        &self,
        num_fused: usize,
        mode: ActivationQuantMode,
    ) -> Result<(), FusedMoeError> {
        let (Self::Packed(packed), 2..) = (self, num_fused) else {
            return Ok(());
        };
        let width = packed.experts().intermediate_size();
        let local = self.num_local_experts();
        for expert in local.saturating_sub(num_fused)..local {
            let quant = self.down_quant(expert, mode);
            let fits = features_of_a_scale(quant).is_some_and(|n| width.is_multiple_of(n));
            if let (Some(quant), false) = (quant, fits) {
                return Err(FusedMoeError::ActivationQuantCut {
                    what: "fused shared experts",
                    quant,
                    instead: "compute them apart, under a routing table without fused shared experts",
                });
            }
        }
        Ok(())
    }
}

/// How many consecutive features share a scale that follows from them, so that a row may be cut
/// between such groups and nowhere else; `None` if it may not be cut at all.
pub(crate) fn features_of_a_scale(quant: Option<ActivationQuant>) -> Option<usize> {
    match quant {
        None | Some(ActivationQuant::Static { .. }) => Some(1),
        Some(ActivationQuant::PerGroup { group_size, .. }) => Some(group_size.max(1)),
        Some(ActivationQuant::Mx { .. }) => Some(32),
        Some(ActivationQuant::Nvfp4 { .. }) => Some(16),
        Some(_) => None,
    }
}
