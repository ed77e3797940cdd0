use burn::tensor::{DType, Tensor};
use moekit_kernels::RouterWeight;

use super::activation::activate;
use super::quantize::quantized;
use super::{ExpertMath, Experts};
use crate::FusedMoeError;
use crate::host::index_tensor;

/// Rows for the experts of this rank, as tensors.
pub(crate) struct TensorBatch<'a> {
    /// `[num_rows, hidden_size]`, `f32`.
    pub(crate) hidden: Tensor<2>,
    /// `[num_rows, top_k]`
    pub(crate) local_ids: &'a [i64],
    /// `[num_rows, top_k]`
    pub(crate) weights: Tensor<2>,
}

impl Experts {
    /// The experts in tensor operations, before they are added up: works on every device and under
    /// autodiff.
    ///
    /// # Returns
    ///
    /// `[num_rows, top_k, hidden_size]`, router weights included; zeros for empty slots.
    pub(crate) fn forward_tensor(
        &self,
        math: ExpertMath,
        batch: TensorBatch<'_>,
    ) -> Result<Tensor<3>, FusedMoeError> {
        let TensorBatch {
            hidden,
            local_ids,
            weights,
        } = batch;
        let ([num_rows, hidden_size], [_, top_k]) = (hidden.dims(), weights.dims());
        let device = hidden.device();
        let slots = slots_by_expert(local_ids, self.num_local_experts())?;
        let flat_weights = weights.reshape([num_rows * top_k, 1]);

        // Position 0 is a row of zeros, to which empty slots point.
        let mut positions = vec![0; local_ids.len()];
        let mut outputs = vec![Tensor::zeros([1, hidden_size], (&device, DType::F32))];
        let mut next = 1;
        for (expert, slots) in slots.into_iter().enumerate().filter(|(_, s)| !s.is_empty()) {
            let rows = slots.iter().map(|&slot| (slot / top_k) as i64).collect();
            let slot_ids = slots.iter().map(|&slot| slot as i64).collect();
            let x = hidden
                .clone()
                .select(0, index_tensor(rows, [slots.len()], &device));
            let w = flat_weights
                .clone()
                .select(0, index_tensor(slot_ids, [slots.len()], &device));
            outputs.push(self.expert(expert, math, x, w)?);
            for slot in slots {
                positions[slot] = next;
                next += 1;
            }
        }
        let outputs = Tensor::cat(outputs, 0);
        let positions = index_tensor(positions, [num_rows * top_k], &device);
        Ok(outputs
            .select(0, positions)
            .reshape([num_rows, top_k, hidden_size]))
    }

    /// One expert: `x` `[num_rows, hidden_size]`, `w` `[num_rows, 1]`.
    fn expert(
        &self,
        expert: usize,
        math: ExpertMath,
        x: Tensor<2>,
        w: Tensor<2>,
    ) -> Result<Tensor<2>, FusedMoeError> {
        let linears = self.tensors(expert, math, &x.device())?;
        let x = match math.router_weight {
            RouterWeight::OnInput => x * w.clone(),
            RouterWeight::OnOutput => x,
        };
        let up_x = quantized(x.clone(), linears.up.input_quant)?;
        let gate = match linears.gate {
            Some(gate) if gate.input_quant == linears.up.input_quant => {
                Some(gate.forward(up_x.clone()))
            }
            Some(gate) => {
                let x = quantized(x, gate.input_quant)?;
                Some(gate.forward(x))
            }
            None => None,
        };
        let inner = activate(math.activation, gate, linears.up.forward(up_x))?;
        let inner = quantized(inner, linears.down.input_quant)?;
        let y = linears.down.forward(inner);
        Ok(match math.router_weight {
            RouterWeight::OnInput => y,
            RouterWeight::OnOutput => y * w,
        })
    }
}

/// The occupied slots of each expert.
fn slots_by_expert(local_ids: &[i64], num_local: usize) -> Result<Vec<Vec<usize>>, FusedMoeError> {
    let mut slots = vec![Vec::new(); num_local];
    for (slot, &id) in local_ids.iter().enumerate() {
        let Ok(expert) = usize::try_from(id) else {
            continue;
        };
        let of_expert = slots.get_mut(expert).ok_or_else(|| {
            FusedMoeError::dispatch(format!(
                "local id {id} names no expert: this rank has {num_local}"
            ))
        })?;
        of_expert.push(slot);
    }
    Ok(slots)
}
