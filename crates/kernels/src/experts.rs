//! The experts: w13, activation, w2, weighted sum.

use moekit_quant::{Activation, ExpertLinear, ExpertMlp, ExpertWeights};
use rayon::prelude::*;

use crate::CpuKernel;
use crate::batch::{ExpertBatch, Grouped, RouterWeight};
use crate::check::check_experts;
use crate::dequantize::dequantize_rows;
use crate::dot::dot;
use crate::error::{KernelError, area};
use crate::panels::{Panels, panel_width};
use crate::rows::{Widen, with_rows};

/// Most weight rows that a task widens to `f32` at a time.
const MAX_BLOCK: usize = 16;

impl CpuKernel {
    /// The fused experts: for each row the weighted sum over its slots,
    /// `sum_j w_j * down(activation(gate(x), up(x)))`, slots added in order.
    ///
    /// Weights stay packed; a few rows at a time are widened to `f32`. Sums are in `f32`.
    ///
    /// # Returns
    ///
    /// `[num_rows, hidden_size]`; zeros for a row without an occupied slot.
    ///
    /// # Errors
    ///
    /// If an id names no expert of `experts`, or shapes do not fit.
    pub fn experts(
        &self,
        experts: &ExpertWeights,
        activation: Activation,
        batch: &ExpertBatch<'_>,
    ) -> Result<Vec<f32>, KernelError> {
        let work = Work::new(self, experts, activation, batch)?;
        Ok(self.install(|| work.summed()))
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
    pub fn experts_per_slot(
        &self,
        experts: &ExpertWeights,
        activation: Activation,
        batch: &ExpertBatch<'_>,
    ) -> Result<Vec<f32>, KernelError> {
        let work = Work::new(self, experts, activation, batch)?;
        area("slot outputs", batch.local_ids().len(), batch.hidden_size())?;
        Ok(self.install(|| work.per_slot()))
    }
}

/// One call: what is multiplied by what.
struct Work<'a> {
    experts: Vec<&'a ExpertMlp>,
    activation: Activation,
    batch: &'a ExpertBatch<'a>,
    grouped: Grouped,
    /// `I` of the widest expert.
    intermediate_size: usize,
    threads: usize,
}

impl<'a> Work<'a> {
    fn new(
        kernel: &CpuKernel,
        weights: &'a ExpertWeights,
        activation: Activation,
        batch: &'a ExpertBatch<'a>,
    ) -> Result<Self, KernelError> {
        let experts: Vec<&ExpertMlp> = weights.experts.iter().map(|e| &**e).collect();
        check_experts(&experts, batch.hidden_size(), activation)?;
        let grouped = Grouped::new(batch, experts.len())?;
        let intermediate_size = experts
            .iter()
            .map(|e| e.intermediate_size())
            .max()
            .unwrap_or(0);
        area("intermediate activations", grouped.len(), intermediate_size)?;
        area("slot outputs", grouped.len(), batch.hidden_size())?;
        Ok(Self {
            experts,
            activation,
            batch,
            grouped,
            intermediate_size,
            threads: kernel.num_threads(),
        })
    }

    /// The activations between w13 and w2, `[occupied slots, I]` in order of [`Grouped`].
    ///
    /// A task computes a few columns for the rows of all experts, so that however unevenly the
    /// rows are spread over experts, the tasks are even, and each weight is read once.
    fn intermediate(&self) -> Vec<f32> {
        let block = panel_width(self.intermediate_size, self.threads, MAX_BLOCK);
        let mut panels = Panels::new(self.grouped.len(), self.intermediate_size, block);
        panels.par_iter_mut().for_each(|(first, columns, out)| {
            with_rows!(self.batch.hidden(), values => {
                self.intermediate_columns(values, first, columns, out);
            });
        });
        panels.into_rows()
    }

    fn intermediate_columns<A: Widen>(
        &self,
        values: &[A],
        first: usize,
        columns: usize,
        out: &mut [f32],
    ) {
        let hidden_size = self.batch.hidden_size();
        let mut gate_rows = WidenedRows::default();
        let mut up_rows = WidenedRows::default();
        for (expert, start, slots) in self.grouped.experts() {
            let expert = self.experts[expert];
            let columns_here = columns.min(expert.intermediate_size().saturating_sub(first));
            if columns_here == 0 {
                continue;
            }
            up_rows.read(&expert.up, first, columns_here);
            if let Some(gate) = &expert.gate {
                gate_rows.read(gate, first, columns_here);
            }
            for (&slot, out) in slots
                .iter()
                .zip(out[start * columns..].chunks_exact_mut(columns))
            {
                let row = slot / self.batch.top_k();
                let x = &values[row * hidden_size..(row + 1) * hidden_size];
                // w13 is linear, so that the weight of the input may as well multiply its output.
                let scale = match self.batch.router_weight() {
                    RouterWeight::OnInput => self.batch.weights()[slot],
                    RouterWeight::OnOutput => 1.0,
                };
                for (i, out) in out[..columns_here].iter_mut().enumerate() {
                    let up = up_rows.multiply(i, x, scale);
                    let gate = match &expert.gate {
                        Some(_) => gate_rows.multiply(i, x, scale),
                        None => 0.0,
                    };
                    *out = self.activation.apply(gate, up);
                }
            }
        }
    }

    /// Weighted outputs of some columns, `[occupied slots, columns]` in order of [`Grouped`].
    fn output_columns(&self, intermediate: &[f32], first: usize, columns: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.grouped.len() * columns];
        let mut rows = WidenedRows::default();
        for (expert, start, slots) in self.grouped.experts() {
            let expert = self.experts[expert];
            rows.read(&expert.down, first, columns);
            for (i, (&slot, out)) in slots
                .iter()
                .zip(out[start * columns..].chunks_exact_mut(columns))
                .enumerate()
            {
                let x = &intermediate[(start + i) * self.intermediate_size..];
                let x = &x[..expert.intermediate_size()];
                for (i, out) in out.iter_mut().enumerate() {
                    let y = rows.multiply(i, x, 1.0);
                    *out = match self.batch.router_weight() {
                        RouterWeight::OnOutput => self.batch.weights()[slot] * y,
                        RouterWeight::OnInput => y,
                    };
                }
            }
        }
        out
    }

    /// `[num_rows, hidden_size]`
    fn summed(&self) -> Vec<f32> {
        let intermediate = self.intermediate();
        let positions = self.positions();
        let top_k = self.batch.top_k();
        self.outputs(self.batch.num_rows(), |first, columns, out| {
            let terms = self.output_columns(&intermediate, first, columns);
            let rows = out
                .chunks_exact_mut(columns)
                .zip(positions.chunks(top_k.max(1)));
            for (out, positions) in rows {
                for &at in positions.iter().flatten() {
                    for (out, term) in out.iter_mut().zip(&terms[at * columns..]) {
                        *out += term;
                    }
                }
            }
        })
    }

    /// `[num_rows * top_k, hidden_size]`
    fn per_slot(&self) -> Vec<f32> {
        let intermediate = self.intermediate();
        let positions = self.positions();
        self.outputs(positions.len(), |first, columns, out| {
            let terms = self.output_columns(&intermediate, first, columns);
            for (out, at) in out.chunks_exact_mut(columns).zip(&positions) {
                if let Some(at) = at {
                    out.copy_from_slice(&terms[at * columns..(at + 1) * columns]);
                }
            }
        })
    }

    fn outputs(&self, rows: usize, fill: impl Fn(usize, usize, &mut [f32]) + Sync) -> Vec<f32> {
        let width = self.batch.hidden_size();
        let block = panel_width(width, self.threads, MAX_BLOCK);
        let mut panels = Panels::new(rows, width, block);
        panels
            .par_iter_mut()
            .for_each(|(first, columns, out)| fill(first, columns, out));
        panels.into_rows()
    }

    /// For each slot of the batch, where [`Grouped`] has put it; `None` if it is empty.
    fn positions(&self) -> Vec<Option<usize>> {
        let mut positions = vec![None; self.batch.local_ids().len()];
        for (_, start, slots) in self.grouped.experts() {
            for (i, &slot) in slots.iter().enumerate() {
                positions[slot] = Some(start + i);
            }
        }
        positions
    }
}

/// A few rows of a linear as `f32`, and their biases.
#[derive(Default)]
struct WidenedRows {
    values: Vec<f32>,
    biases: Vec<f32>,
    cols: usize,
}

impl WidenedRows {
    fn read(&mut self, linear: &ExpertLinear, first: usize, rows: usize) {
        self.cols = linear.weight.cols();
        self.values.clear();
        self.values.resize(rows * self.cols, 0.0);
        dequantize_rows(&linear.weight, first, &mut self.values);
        self.biases.clear();
        match &linear.bias {
            Some(bias) => self.biases.extend_from_slice(&bias[first..first + rows]),
            None => self.biases.resize(rows, 0.0),
        }
    }

    /// `scale * (W x) + b` of one row.
    fn multiply<A: Widen>(&self, row: usize, x: &[A], scale: f32) -> f32 {
        let weights = &self.values[row * self.cols..(row + 1) * self.cols];
        dot(weights, x) * scale + self.biases[row]
    }
}

#[cfg(test)]
mod tests;
