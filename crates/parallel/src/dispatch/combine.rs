//! Outputs of experts back to the tokens.

use moekit_fused_moe::FusedMoeError;

use super::Exchange;
use crate::{Blocks, Communicator, CommunicatorExt};

impl Exchange {
    /// One sum per row travels back; the source adds them in order of the ranks.
    pub(super) fn combine_sums(
        &self,
        comm: &dyn Communicator,
        values: Vec<f32>,
    ) -> Result<Vec<f32>, FusedMoeError> {
        self.check_length(values.len(), self.hidden_size)?;
        let counts: Vec<usize> = self
            .received
            .iter()
            .map(|rows| rows * self.hidden_size)
            .collect();
        let blocks = comm
            .all_to_all_values(values, &counts)
            .map_err(FusedMoeError::dispatch)?;

        let width = self.hidden_size;
        let mut output = vec![0.0; self.num_tokens * width];
        let returned = self.sent.iter().map(|sent| sent.tokens.len());
        self.check_returned(&blocks, returned)?;
        for (sent, rows) in self.sent.iter().zip(blocks.iter()) {
            for (&token, row) in sent.tokens.iter().zip(rows.chunks_exact(width.max(1))) {
                add(&mut output[token * width..(token + 1) * width], row);
            }
        }
        Ok(output)
    }

    /// The output of every slot travels back; the source adds them in order of the slots, whichever
    /// ranks they were on.
    pub(super) fn combine_slots(
        &self,
        comm: &dyn Communicator,
        values: &[f32],
    ) -> Result<Vec<f32>, FusedMoeError> {
        let width = self.hidden_size;
        self.check_length(values.len(), self.top_k * width)?;
        // Only the slots of this rank have an output.
        let mut send = Vec::with_capacity(values.len());
        let mut counts = Vec::with_capacity(self.received.len());
        let mut slot = 0;
        for rows in &self.received {
            let start = send.len();
            for _ in 0..rows * self.top_k {
                if self.received_ids[slot] >= 0 {
                    send.extend_from_slice(&values[slot * width..(slot + 1) * width]);
                }
                slot += 1;
            }
            counts.push(send.len() - start);
        }
        let blocks = comm
            .all_to_all_values(send, &counts)
            .map_err(FusedMoeError::dispatch)?;
        let filled = |ids: &[i64]| ids.iter().filter(|&&id| id >= 0).count();
        self.check_returned(
            &blocks,
            self.sent.iter().map(|sent| filled(&sent.local_ids)),
        )?;
        Ok(self.sum_slots(&blocks))
    }

    fn sum_slots(&self, blocks: &Blocks<f32>) -> Vec<f32> {
        let width = self.hidden_size;
        let mut slots = vec![0.0; self.num_tokens * self.top_k * width];
        for (sent, values) in self.sent.iter().zip(blocks.iter()) {
            let mut rows = values.chunks_exact(width.max(1));
            let ids = sent.local_ids.chunks_exact(self.top_k.max(1));
            for (&token, ids) in sent.tokens.iter().zip(ids) {
                for (slot, _) in ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
                    let at = (token * self.top_k + slot) * width;
                    if let Some(row) = rows.next() {
                        slots[at..at + width].copy_from_slice(row);
                    }
                }
            }
        }
        let mut output = vec![0.0; self.num_tokens * width];
        let tokens = slots.chunks_exact((self.top_k * width).max(1));
        for (sum, slots) in output.chunks_exact_mut(width.max(1)).zip(tokens) {
            slots
                .chunks_exact(width.max(1))
                .for_each(|slot| add(sum, slot));
        }
        output
    }

    fn check_length(&self, got: usize, width: usize) -> Result<(), FusedMoeError> {
        let rows: usize = self.received.iter().sum();
        if got == rows * width {
            return Ok(());
        }
        Err(FusedMoeError::dispatch(format!(
            "the experts' outputs have {got} values, expected {rows} rows of {width}"
        )))
    }

    /// Whether each rank returned as many rows as it was sent.
    fn check_returned(
        &self,
        blocks: &Blocks<f32>,
        expected: impl Iterator<Item = usize>,
    ) -> Result<(), FusedMoeError> {
        for (rank, (got, rows)) in blocks.counts().into_iter().zip(expected).enumerate() {
            if got != rows * self.hidden_size {
                return Err(FusedMoeError::dispatch(format!(
                    "rank {rank} returned {got} values, expected {rows} rows of {}",
                    self.hidden_size
                )));
            }
        }
        Ok(())
    }
}

fn add(sum: &mut [f32], row: &[f32]) {
    sum.iter_mut()
        .zip(row)
        .for_each(|(sum, value)| *sum += value);
}
