//! The input rows of w13, quantized where that is asked for.

use moekit_quant::{ActivationQuant, ExpertLinear, ExpertMlp};
use rayon::prelude::*;

use crate::batch::ExpertBatch;
use crate::rows::{Rows, Widen, with_rows};

/// The input of a linear.
#[derive(Clone, Copy)]
pub(super) enum Input<'a, A> {
    /// A row and what it is multiplied by.
    Weighted(&'a [A], f32),
    /// A row that has been multiplied, quantized and dequantized.
    Quantized(&'a [f32]),
}

/// Which rows of a batch are quantized how. Linears with the same input share it: gate and up, and
/// the experts of a token.
#[derive(Default)]
pub(super) struct InputPlan {
    rows: Vec<QuantizedRow>,
    /// For each slot of the batch, the input of gate and of up in `rows`; empty if there is none.
    slots: Vec<[Option<usize>; 2]>,
}

struct QuantizedRow {
    /// Row of the batch.
    row: usize,
    /// What it is multiplied by before.
    weight: f32,
    quant: ActivationQuant,
}

impl InputPlan {
    /// The ids of the batch must have been checked.
    pub(super) fn new(experts: &[&ExpertMlp], batch: &ExpertBatch<'_>) -> Self {
        let mode = batch.activation_quant();
        let quant = |linear: &ExpertLinear| mode.input_quant(linear);
        let schemes = |e: &ExpertMlp| [e.gate.as_ref().and_then(quant), quant(&e.up)];
        let mut plan = Self::default();
        if experts.iter().all(|e| schemes(e) == [None; 2]) {
            return plan;
        }
        let top_k = batch.top_k().max(1);
        for (row, ids) in batch.local_ids().chunks(top_k).enumerate() {
            let first = plan.rows.len();
            for (slot, &id) in ids.iter().enumerate() {
                let expert = usize::try_from(id).ok().and_then(|e| experts.get(e));
                let weight = batch.input_weight(row * top_k + slot);
                let inputs = expert.map_or([None; 2], |e| schemes(e)).map(|quant| {
                    Some(plan.find_or_add(
                        first,
                        QuantizedRow {
                            row,
                            weight,
                            quant: quant?,
                        },
                    ))
                });
                plan.slots.push(inputs);
            }
        }
        plan
    }

    /// The place of a row, which is not before `first`.
    fn find_or_add(&mut self, first: usize, wanted: QuantizedRow) -> usize {
        let same = |have: &QuantizedRow| {
            have.weight.to_bits() == wanted.weight.to_bits() && have.quant == wanted.quant
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

    /// The quantized and dequantized rows, `[len, hidden_size]`.
    pub(super) fn quantize(&self, hidden: Rows<'_>, hidden_size: usize) -> Vec<f32> {
        let mut out = vec![0.0; self.rows.len() * hidden_size];
        with_rows!(hidden, values => {
            out.par_chunks_mut(hidden_size).zip(&self.rows).for_each(|(out, planned)| {
                let x = &values[planned.row * hidden_size..];
                for (out, x) in out.iter_mut().zip(x) {
                    *out = x.widen() * planned.weight;
                }
                planned.quant.apply(out);
            });
        });
        out
    }

    /// The inputs of gate and up in a slot.
    ///
    /// # Arguments
    ///
    /// - `values` - the rows of the batch, and what [`InputPlan::quantize`] has made of them.
    pub(super) fn of_slot<'a, A>(
        &self,
        batch: &ExpertBatch<'_>,
        slot: usize,
        (values, quantized): (&'a [A], &'a [f32]),
    ) -> [Input<'a, A>; 2] {
        let width = batch.hidden_size();
        let row = slot / batch.top_k();
        let planned = self.slots.get(slot).copied().unwrap_or_default();
        planned.map(|at| match at {
            Some(at) => Input::Quantized(&quantized[at * width..(at + 1) * width]),
            None => {
                let x = &values[row * width..(row + 1) * width];
                Input::Weighted(x, batch.input_weight(slot))
            }
        })
    }
}
