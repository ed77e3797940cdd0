//! The experts: w13, activation, w2, weighted sum.

mod inputs;

use std::iter::repeat_n;

use moekit_quant::{Activation, ExpertLinear, ExpertMlp, ExpertWeights};
use rayon::prelude::*;

use self::inputs::{Input, InputPlan};
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
    /// [`ExpertBatch::with_activation_quant`] says whether the inputs of linears are quantized.
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
    inputs: InputPlan,
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
        let inputs = InputPlan::new(&experts, batch);
        let intermediate_size = experts
            .iter()
            .map(|e| e.intermediate_size())
            .max()
            .unwrap_or(0);
        area("intermediate activations", grouped.len(), intermediate_size)?;
        area("slot outputs", grouped.len(), batch.hidden_size())?;
        area("quantized inputs", inputs.len(), batch.hidden_size())?;
        Ok(Self {
            experts,
            activation,
            batch,
            grouped,
            inputs,
            intermediate_size,
            threads: kernel.num_threads(),
        })
    }

    /// The activations between w13 and w2, `[occupied slots, I]` in order of [`Grouped`], as w2
    /// takes them in.
    ///
    /// A task computes a few columns for the rows of all experts, so that however unevenly the
    /// rows are spread over experts, the tasks are even, and each weight is read once.
    fn intermediate(&self) -> Vec<f32> {
        let block = panel_width(self.intermediate_size, self.threads, MAX_BLOCK);
        let mut panels = Panels::new(self.grouped.len(), self.intermediate_size, block);
        let hidden = self.batch.hidden();
        let quantized = self.inputs.quantize(hidden, self.batch.hidden_size());
        panels.par_iter_mut().for_each(|(first, columns, out)| {
            with_rows!(hidden, values => {
                self.intermediate_columns((values, &quantized), first, columns, out);
            });
        });
        let mut rows = panels.into_rows();
        self.quantize_intermediate(&mut rows);
        rows
    }

    /// `values` are the rows of the batch and those of the [`InputPlan`].
    fn intermediate_columns<A: Widen>(
        &self,
        values: (&[A], &[f32]),
        first: usize,
        columns: usize,
        out: &mut [f32],
    ) {
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
                let [gate_x, up_x] = self.inputs.of_slot(self.batch, slot, values);
                for (i, out) in out[..columns_here].iter_mut().enumerate() {
                    let up = up_rows.multiply(i, up_x);
                    let gate = match &expert.gate {
                        Some(_) => gate_rows.multiply(i, gate_x),
                        None => 0.0,
                    };
                    *out = self.activation.apply(gate, up);
                }
            }
        }
    }

    /// Quantizes and dequantizes the rows of [`Work::intermediate`].
    fn quantize_intermediate(&self, rows: &mut [f32]) {
        let mode = self.batch.activation_quant();
        let quantized = |expert: &&ExpertMlp| mode.input_quant(&expert.down).is_some();
        if !self.experts.iter().any(quantized) {
            return;
        }
        let experts: Vec<&ExpertMlp> = self
            .grouped
            .experts()
            .flat_map(|(expert, _, slots)| repeat_n(self.experts[expert], slots.len()))
            .collect();
        rows.par_chunks_mut(self.intermediate_size.max(1))
            .zip(experts)
            .for_each(|(row, expert)| {
                if let Some(quant) = mode.input_quant(&expert.down) {
                    quant.apply(&mut row[..expert.intermediate_size()]);
                }
            });
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
                    let y = rows.multiply(i, Input::Weighted(x, 1.0));
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

    /// `W x + b` of one row.
    fn multiply<A: Widen>(&self, row: usize, x: Input<'_, A>) -> f32 {
        let weights = &self.values[row * self.cols..(row + 1) * self.cols];
        let product = match x {
            // The product is linear, so that the weight of the input may as well multiply it.
            Input::Weighted(x, weight) => dot(weights, x) * weight,
            Input::Quantized(x) => dot(weights, x),
        };
        product + self.biases[row]
    }
}

#[cfg(test)]
mod tests;
