//! The experts: w13, activation, w2, weighted sum.

mod activate;
mod finish;
mod inputs;
mod job;
mod memory;
mod multiply;
mod pack;
mod phase;
mod plan;
mod series;
mod streams;
mod view;
mod work;

use moekit_quant::Activation;

use self::job::Job;
pub(crate) use self::memory::Workspaces;
pub use self::view::ExpertSet;
pub(crate) use self::view::{LinearView, MlpView, WeightView};
use crate::CpuKernel;
use crate::batch::ExpertBatch;
use crate::error::{KernelError, area};

/// Values of the terms that a call keeps before they are added up: 1 GB.
const MOST_TERMS: usize = 256 << 20;

impl CpuKernel {
    /// The fused experts: for each row the weighted sum over its slots,
    /// `sum_j w_j * down(activation(gate(x), up(x)))`, slots added in order.
    ///
    /// Weights stay packed: their codes become numbers in registers, or a block of a panel at a
    /// time in cache. Sums are in `f32`. Rows in `f32` are never rounded; rows in bf16 meet weights
    /// of bf16, and of few bits, in bf16 products, and what lies between w13 and w2 is rounded to
    /// bf16 for them.
    /// [`ExpertBatch::with_activation_quant`] says whether the inputs of linears are quantized.
    ///
    /// # Arguments
    ///
    /// - `experts` - [prepared](crate::PreparedExperts), or weights as a checkpoint has them, which
    ///   are rearranged on the way: right, and slower.
    ///
    /// # Returns
    ///
    /// `[num_rows, hidden_size]`; zeros for a row without an occupied slot.
    ///
    /// # Errors
    ///
    /// If an id names no expert of `experts`, or shapes do not fit.
    pub fn experts<'a>(
        &self,
        experts: impl Into<ExpertSet<'a>>,
        activation: Activation,
        batch: &ExpertBatch<'_>,
    ) -> Result<Vec<f32>, KernelError> {
        let row_terms = batch.top_k().saturating_mul(batch.hidden_size()).max(1);
        self.experts_by_rows(experts.into(), activation, batch, MOST_TERMS / row_terms)
    }

    /// Some rows at a time: what a row gives does not depend on those beside it, and what lies between
    /// the steps takes no more memory than for so many.
    fn experts_by_rows(
        &self,
        experts: ExpertSet<'_>,
        activation: Activation,
        batch: &ExpertBatch<'_>,
        rows_at_a_time: usize,
    ) -> Result<Vec<f32>, KernelError> {
        let (rows, width) = (batch.num_rows(), batch.hidden_size());
        let mut out = vec![0.0; area("outputs", rows, width)?];
        let step = rows_at_a_time.max(1);
        // Once for an empty batch too, whose experts must fit as well.
        for first in (0..rows.max(1)).step_by(step) {
            let end = rows.min(first.saturating_add(step));
            let part = batch.part(first..end);
            let job = Job::new(self, experts, activation, &part, false)
                .map_err(|error| error.rows_from(first))?;
            job.run(self, &mut out[first * width..end * width])?;
        }
        Ok(out)
    }

    /// The terms of [`CpuKernel::experts`] before they are added up, router weights included.
    ///
    /// # Returns
    ///
    /// `[num_rows, top_k, hidden_size]`; zeros for an empty slot.
    ///
    /// # Errors
    ///
    /// Those of [`CpuKernel::experts`].
    pub fn experts_per_slot<'a>(
        &self,
        experts: impl Into<ExpertSet<'a>>,
        activation: Activation,
        batch: &ExpertBatch<'_>,
    ) -> Result<Vec<f32>, KernelError> {
        let slots = batch.local_ids().len();
        let mut out = vec![0.0; area("slot outputs", slots, batch.hidden_size())?];
        let job = Job::new(self, experts.into(), activation, batch, true)?;
        job.run(self, &mut out)?;
        Ok(out)
    }
}

#[cfg(test)]
mod tests;
