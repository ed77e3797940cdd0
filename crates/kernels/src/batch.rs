use std::ops::Range;

use crate::ActivationQuantMode;
use crate::error::{KernelError, area, check_len, whole_rows};
use crate::rows::Rows;

/// Where the weight that the gate gives an expert is applied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RouterWeight {
    /// `sum w * expert(x)`.
    #[default]
    OnOutput,
    /// `sum expert(w * x)`.
    OnInput,
}

/// Rows of activations with the local experts that each is for.
#[derive(Clone, Copy, Debug)]
pub struct ExpertBatch<'a> {
    hidden: Rows<'a>,
    local_ids: &'a [i64],
    weights: &'a [f32],
    hidden_size: usize,
    top_k: usize,
    num_rows: usize,
    router_weight: RouterWeight,
    activation_quant: ActivationQuantMode,
}

impl<'a> ExpertBatch<'a> {
    /// A batch whose router weights are applied on the output and whose activations are not
    /// quantized.
    ///
    /// # Arguments
    ///
    /// - `hidden` - `[num_rows, hidden_size]`.
    /// - `local_ids` - `[num_rows, top_k]`, the local expert of each slot; negative where the slot
    ///   is empty or the expert elsewhere.
    /// - `weights` - `[num_rows, top_k]`, of which those of empty slots are not looked at.
    ///
    /// # Errors
    ///
    /// If the lengths do not agree.
    pub fn new(
        hidden: impl Into<Rows<'a>>,
        hidden_size: usize,
        local_ids: &'a [i64],
        weights: &'a [f32],
        top_k: usize,
    ) -> Result<Self, KernelError> {
        let hidden = hidden.into();
        let num_rows = whole_rows(
            "hidden",
            hidden.len(),
            hidden_size,
            "[num_rows, hidden_size]",
        )?;
        let slots = area("slots", num_rows, top_k)?;
        check_len("local_ids", local_ids.len(), slots, "[num_rows, top_k]")?;
        check_len("weights", weights.len(), slots, "[num_rows, top_k]")?;
        Ok(Self {
            hidden,
            local_ids,
            weights,
            hidden_size,
            top_k,
            num_rows,
            router_weight: RouterWeight::OnOutput,
            activation_quant: ActivationQuantMode::Off,
        })
    }

    /// Applies the router weights elsewhere.
    #[must_use]
    pub fn with_router_weight(mut self, router_weight: RouterWeight) -> Self {
        self.router_weight = router_weight;
        self
    }

    /// Quantizes the inputs of linears as their checkpoint means it, or not.
    #[must_use]
    pub fn with_activation_quant(mut self, activation_quant: ActivationQuantMode) -> Self {
        self.activation_quant = activation_quant;
        self
    }

    /// `[num_rows, hidden_size]`
    pub fn hidden(&self) -> Rows<'a> {
        self.hidden
    }

    /// `[num_rows, top_k]`
    pub fn local_ids(&self) -> &'a [i64] {
        self.local_ids
    }

    /// `[num_rows, top_k]`
    pub fn weights(&self) -> &'a [f32] {
        self.weights
    }

    /// Values of a row.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Slots of a row.
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// Rows.
    pub fn num_rows(&self) -> usize {
        self.num_rows
    }

    /// Where the router weights are applied.
    pub fn router_weight(&self) -> RouterWeight {
        self.router_weight
    }

    /// Whether the inputs of linears are quantized.
    pub fn activation_quant(&self) -> ActivationQuantMode {
        self.activation_quant
    }

    /// Some of the rows.
    pub(crate) fn part(&self, rows: Range<usize>) -> Self {
        let slots = rows.start * self.top_k..rows.end * self.top_k;
        Self {
            hidden: self
                .hidden
                .part(rows.start * self.hidden_size..rows.end * self.hidden_size),
            local_ids: &self.local_ids[slots.clone()],
            weights: &self.weights[slots],
            num_rows: rows.len(),
            ..*self
        }
    }

    /// What the input of the expert in a slot is multiplied by.
    pub(crate) fn input_weight(&self, slot: usize) -> f32 {
        match self.router_weight {
            RouterWeight::OnInput => self.weights[slot],
            RouterWeight::OnOutput => 1.0,
        }
    }
}

/// The occupied slots of a batch, sorted by expert and within an expert by row.
#[derive(Debug)]
pub(crate) struct Grouped {
    /// `[num_local + 1]` offsets into `slots`.
    offsets: Vec<usize>,
    /// Index into `[num_rows, top_k]` of each occupied slot.
    slots: Vec<usize>,
}

impl Grouped {
    /// Counting sort; checks the ids.
    pub(crate) fn new(batch: &ExpertBatch<'_>, num_local: usize) -> Result<Self, KernelError> {
        // Those of an expert are counted two places further on, then its next slot goes where the place
        // before says, which so becomes the end of the expert.
        let mut offsets = vec![0_usize; num_local + 2];
        for (slot, &id) in batch.local_ids.iter().enumerate() {
            let Ok(expert) = usize::try_from(id) else {
                continue;
            };
            if expert >= num_local {
                return Err(KernelError::LocalId {
                    id,
                    row: slot / batch.top_k.max(1),
                    slot: slot % batch.top_k.max(1),
                    num_local,
                });
            }
            offsets[expert + 2] += 1;
        }
        for expert in 0..num_local {
            offsets[expert + 2] += offsets[expert + 1];
        }
        let mut slots = vec![0; offsets[num_local + 1]];
        for (slot, &id) in batch.local_ids.iter().enumerate() {
            if let Ok(expert) = usize::try_from(id) {
                let next = &mut offsets[expert + 1];
                slots[*next] = slot;
                *next += 1;
            }
        }
        offsets.truncate(num_local + 1);
        Ok(Self { offsets, slots })
    }

    /// Occupied slots.
    pub(crate) fn len(&self) -> usize {
        self.slots.len()
    }

    /// Some occupied slots, by their places.
    pub(crate) fn slots(&self, start: usize, len: usize) -> &[usize] {
        &self.slots[start..start + len]
    }

    /// Experts that have rows, each with the position of its first slot and its slots.
    pub(crate) fn experts(&self) -> impl Iterator<Item = (usize, usize, &[usize])> + Clone {
        self.offsets
            .windows(2)
            .enumerate()
            .filter(|(_, range)| range[0] < range[1])
            .map(|(expert, range)| (expert, range[0], &self.slots[range[0]..range[1]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_sorted_by_expert_then_row() {
        let hidden = [0.0_f32; 3];
        let ids = [2, 0, -1, 2, 0, 2];
        let batch = ExpertBatch::new(&hidden[..], 1, &ids, &[1.0; 6], 2).unwrap();
        let grouped = Grouped::new(&batch, 4).unwrap();
        let experts: Vec<_> = grouped.experts().collect();
        assert_eq!(experts, [(0, 0, &[1, 4][..]), (2, 2, &[0, 3, 5][..])]);
        assert_eq!(grouped.len(), 5);
    }

    #[test]
    fn lengths_and_ids_are_checked() {
        let hidden = [0.0_f32; 6];
        let new = |width, ids: &[i64], weights: &[f32]| {
            ExpertBatch::new(&hidden[..], width, ids, weights, 2)
                .and_then(|batch| Grouped::new(&batch, 3).map(|g| g.len()))
        };
        assert_eq!(new(2, &[0; 6], &[0.0; 6]), Ok(6));
        for (result, message) in [
            (
                new(4, &[0; 2], &[0.0; 2]),
                "hidden has 6 elements, which is not a multiple of 4",
            ),
            (new(0, &[], &[]), "multiple of 0"),
            (
                new(2, &[0; 5], &[0.0; 6]),
                "local_ids has 5 elements, expected 6",
            ),
            (
                new(2, &[0; 6], &[0.0; 7]),
                "weights has 7 elements, expected 6",
            ),
            (
                new(2, &[0, 0, 0, 3, 0, 0], &[0.0; 6]),
                "local id 3 of row 1, slot 1 names no expert: there are 3",
            ),
            (
                new(2, &[0, 0, 0, 0, i64::MAX, 0], &[0.0; 6]),
                "local id 9223372036854775807",
            ),
        ] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(message), "{error}");
        }
    }
}
