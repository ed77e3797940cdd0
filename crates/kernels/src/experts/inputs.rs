//! The input rows of w13, quantized where that is asked for.
#![allow(unsafe_code, reason = "vector instructions")]

use moekit_quant::ActivationQuant;

use super::plan::linear_input;
use super::{LinearView, MlpView};
use crate::batch::{ExpertBatch, Grouped};
use crate::formats::{Input, Quantize, int8_units};
use crate::prepared::FEATURES;
use crate::rows::{Rows, Widen, with_rows};
use crate::{CpuKernel, Isa};

/// Rows that one task quantizes.
const ROWS_PER_TASK: usize = 8;

/// Which rows of a batch are quantized how. Linears with the same input share it: gate and up, and
/// the experts of a token.
#[derive(Debug, Default)]
pub(super) struct InputPlan {
    rows: Vec<QuantizedRow>,
    /// For each slot of the batch, the input of gate and of up in `rows`; empty if there is none.
    slots: Vec<[Option<usize>; 2]>,
    /// Values from one row to the next. Asked for with every row, so that it is not derived each time.
    stride: usize,
}

#[derive(Debug)]
struct QuantizedRow {
    /// Row of the batch.
    row: usize,
    /// What it is multiplied by before.
    weight: f32,
    quant: ActivationQuant,
    input: Input,
}

impl QuantizedRow {
    fn quantize<A: Widen + Default>(&self, isa: Isa, x: &[A], out: &mut [f32]) {
        if self.input == Input::Int8 {
            let units = int8_units(x.len().next_multiple_of(FEATURES));
            let op = Quantize {
                quant: self.quant,
                values: x,
                weight: self.weight,
                units: bytemuck::cast_slice_mut(&mut out[..units]),
            };
            // SAFETY: the instruction set is an available one.
            unsafe { isa.dispatch(op) };
            return;
        }
        for (out, x) in out.iter_mut().zip(x) {
            *out = x.widen() * self.weight;
        }
        self.quant.apply(out);
    }
}

impl InputPlan {
    /// # Arguments
    ///
    /// - `experts` - those that have rows.
    pub(super) fn new(experts: &[MlpView<'_>], grouped: &Grouped, batch: &ExpertBatch<'_>) -> Self {
        let mode = batch.activation_quant();
        let quant = |linear: &LinearView<'_>| {
            let quant = mode.input_quant(linear.input_quant)?;
            Some((quant, linear_input(linear, false, Some(quant))))
        };
        let schemes = |e: &MlpView<'_>| [e.gate.as_ref().and_then(quant), quant(&e.up)];
        let mut plan = Self::default();
        let mut of_slots = Vec::new();
        for (expert, (_, _, slots)) in experts.iter().zip(grouped.experts()) {
            let schemes = schemes(expert);
            if schemes != [None; 2] {
                of_slots.resize(batch.local_ids().len(), [None; 2]);
                slots.iter().for_each(|&slot| of_slots[slot] = schemes);
            }
        }
        let top_k = batch.top_k().max(1);
        for (row, schemes) in of_slots.chunks(top_k).enumerate() {
            let first = plan.rows.len();
            for (slot, schemes) in schemes.iter().enumerate() {
                let weight = batch.input_weight(row * top_k + slot);
                let inputs = schemes.map(|scheme| {
                    let (quant, input) = scheme?;
                    let row = QuantizedRow {
                        row,
                        weight,
                        quant,
                        input,
                    };
                    Some(plan.find_or_add(first, row))
                });
                plan.slots.push(inputs);
            }
        }
        let hidden_size = batch.hidden_size();
        plan.stride = match plan.rows.iter().all(|row| row.input == Input::Int8) {
            true => int8_units(hidden_size.next_multiple_of(FEATURES)),
            false => hidden_size,
        };
        plan
    }

    /// The place of a row, which is not before `first`.
    fn find_or_add(&mut self, first: usize, wanted: QuantizedRow) -> usize {
        let same = |have: &QuantizedRow| {
            have.weight.to_bits() == wanted.weight.to_bits()
                && (have.quant, have.input) == (wanted.quant, wanted.input)
        };
        let found = self.rows[first..].iter().position(same);
        found.map_or_else(
            || {
                self.rows.push(wanted);
                self.rows.len() - 1
            },
            |at| first + at,
        )
    }

    /// Rows that are quantized.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Values from one row to the next.
    pub(super) fn stride(&self) -> usize {
        self.stride
    }

    /// Writes the rows, quantized and dequantized, or the bits of the units of their integers:
    /// `[len, stride]`.
    pub(super) fn quantize(
        &self,
        kernel: &CpuKernel,
        hidden: Rows<'_>,
        hidden_size: usize,
        isa: Isa,
        out: &mut [f32],
    ) {
        if self.rows.is_empty() {
            return;
        }
        let stride = self.stride;
        let parts = out.chunks_mut(ROWS_PER_TASK * stride);
        let parts = parts.zip(self.rows.chunks(ROWS_PER_TASK)).collect();
        with_rows!(hidden, values => {
            kernel.spread(parts, |(out, rows)| {
                for (out, planned) in out.chunks_mut(stride).zip(rows) {
                    let x = &values[planned.row * hidden_size..][..hidden_size];
                    planned.quantize(isa, x, out);
                }
            });
        });
    }

    /// The rows of [`InputPlan::quantize`] that gate and up take in a slot; `None` where they take
    /// the row of the batch.
    pub(super) fn of_slot(&self, slot: usize) -> [Option<usize>; 2] {
        self.slots.get(slot).copied().unwrap_or_default()
    }
}
