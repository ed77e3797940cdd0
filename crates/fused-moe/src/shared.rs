use burn::module::{Module, Param};
use burn::tensor::{Tensor, activation};
use moekit_kernels::{CpuKernel, ExpertBatch, Rows};

use crate::FusedMoeError;
use crate::dispatch::ExpertOutputs;
use crate::experts::{ExpertMath, Experts, Reduction, TensorBatch};
use crate::host::{Floats, float_tensor};

/// The experts that every token passes: `scaling * sigmoid(gate(x)) * mlp(x)`, without gate
/// `scaling * mlp(x)`.
#[derive(Module, Debug)]
pub struct SharedExperts {
    /// One MLP as wide as all shared experts; `None` where they are fused into the routed experts
    /// as extra local slots.
    pub mlp: Option<Experts>,
    /// `[1, hidden_size]`
    pub gate: Option<Param<Tensor<2>>>,
    #[module(skip)]
    pub(crate) scaling: f32,
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

    /// Adds the output of shared experts that are computed apart, for the first `num_valid` rows.
    pub(crate) fn add_rows(
        &self,
        kernel: &CpuKernel,
        math: ExpertMath,
        (hidden, hidden_size): (Rows<'_>, usize),
        num_valid: usize,
        output: &mut [f32],
    ) -> Result<(), FusedMoeError> {
        let Some(mlp) = &self.mlp else {
            return Ok(());
        };
        let weights = self.row_weights(kernel, hidden, hidden_size)?;
        let ids = row_ids(weights.len(), num_valid);
        let batch = ExpertBatch::new(hidden, hidden_size, &ids, &weights, 1)?;
        let (ExpertOutputs::Summed(terms) | ExpertOutputs::PerSlot(terms)) =
            mlp.forward_rows(kernel, math, batch, Reduction::PerRank)?;
        output
            .iter_mut()
            .zip(terms)
            .for_each(|(sum, term)| *sum += term);
        Ok(())
    }

    /// [`SharedExperts::add_rows`] in tensor operations.
    pub(crate) fn add_tensor(
        &self,
        math: ExpertMath,
        hidden: Tensor<2>,
        num_valid: usize,
        output: Tensor<2>,
    ) -> Result<Tensor<2>, FusedMoeError> {
        let Some(mlp) = &self.mlp else {
            return Ok(output);
        };
        let weights = self.tensor_weights(&hidden);
        let local_ids = &row_ids(hidden.dims()[0], num_valid);
        let batch = TensorBatch {
            hidden,
            local_ids,
            weights,
        };
        let terms = mlp.forward_tensor(math, batch)?;
        Ok(output + terms.squeeze_dim::<2>(1))
    }
}

/// The one expert for every row that is not padding.
fn row_ids(num_rows: usize, num_valid: usize) -> Vec<i64> {
    (0..num_rows)
        .map(|row| if row < num_valid { 0 } else { -1 })
        .collect()
}
