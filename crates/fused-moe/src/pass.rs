//! The steps of a forward pass.

use burn::tensor::{DType, Device, Tensor};
use moekit_kernels::{ExpertBatch, Routed, Rows};
use moekit_routing::{
    CountsNeeded, ExpertRouting, RoutingTable, SelectContext, SelectReplica, StepLoad,
};

use crate::FusedMoeError;
use crate::dispatch::{Dispatched, ExpertOutputs, HiddenRows, RoutedTokens, local_ids};
use crate::experts::{Reduction, TensorBatch};
use crate::host::{Floats, HostTensor, float_tensor, output_tensor};
use crate::layer::{FusedMoe, FusedMoeOutput};

/// One forward pass: one snapshot of the routing table from gate to combine.
pub(crate) struct Pass<'a> {
    pub(crate) layer: &'a FusedMoe,
    pub(crate) table: &'a RoutingTable,
    /// Rows from here on are padding.
    pub(crate) num_valid: usize,
    /// Whether the CPU kernels do the work, or tensor operations.
    pub(crate) kernels: bool,
}

/// The slots of a batch: those of routed experts, then those of fused shared experts.
struct Slots {
    /// `[num_tokens, top_k]`
    physical_ids: Vec<i64>,
    top_k: usize,
    load: StepLoad,
}

impl Pass<'_> {
    /// The pass over host memory, on one rank and on many.
    pub(crate) fn on_host(&self, hidden: Tensor<2>) -> Result<FusedMoeOutput, FusedMoeError> {
        let parts = &self.layer.parts;
        let (shape, dtype, device) = (hidden.dims(), hidden.dtype(), hidden.device());
        let host = HostTensor::new(hidden.clone())?;
        let rows = host.rows()?;
        let wide = (!self.kernels && shape[0] > 0).then(|| hidden.cast(DType::F32));
        let mut routed = match &wide {
            Some(wide) => {
                self.layer
                    .gate
                    .route_tensor(&parts.kernel, wide.clone())?
                    .routed
            }
            None => self.layer.gate.route_rows(&parts.kernel, rows, shape[1])?,
        };
        self.clear_padding(&mut routed);
        let slots = self.slots(&routed)?;
        let weights = self.slot_weights(&routed, rows)?;

        let (ids, top_k) = (&slots.physical_ids, slots.top_k);
        let tokens = RoutedTokens::new(rows, shape[1], ids, &weights, top_k, self.table)?;
        let dispatched = parts.dispatcher.dispatch(&tokens)?;
        let outputs = self.experts(&dispatched, top_k, &device)?;
        let mut output = parts.dispatcher.combine(outputs, dispatched.handle)?;
        if output.len() != rows.len() {
            return Err(FusedMoeError::shape(
                "the combined output",
                &[output.len()],
                shape,
            ));
        }
        let output = match (&self.layer.shared, wide) {
            (Some(shared), Some(wide)) => {
                let output = float_tensor(output, shape, &device);
                shared
                    .add_tensor(parts.math, wide, self.num_valid, output)?
                    .cast(dtype)
            }
            (Some(shared), None) => {
                let (kernel, valid) = (&parts.kernel, self.num_valid);
                shared.add_rows(kernel, parts.math, (rows, shape[1]), valid, &mut output)?;
                output_tensor(output, shape, dtype, &device)
            }
            (None, _) => output_tensor(output, shape, dtype, &device),
        };
        Ok(finish(output, routed, slots))
    }

    /// The pass in tensor operations, on one rank.
    pub(crate) fn in_tensors(&self, hidden: Tensor<2>) -> Result<FusedMoeOutput, FusedMoeError> {
        let (layer, parts) = (self.layer, &self.layer.parts);
        let (shape, dtype) = (hidden.dims(), hidden.dtype());
        if shape[0] == 0 {
            let mut routed = Routed::default();
            self.clear_padding(&mut routed);
            return Ok(finish(hidden, routed.clone(), self.slots(&routed)?));
        }
        let x = hidden.cast(DType::F32);
        let routed = layer.gate.route_tensor(&parts.kernel, x.clone())?;
        let (mut weights, mut routed) = (routed.weights, routed.routed);
        self.clear_padding(&mut routed);
        let slots = self.slots(&routed)?;
        if let (Some(shared), 1..) = (&layer.shared, self.table.num_shared_experts()) {
            let shared = shared.tensor_weights(&x);
            let shared = shared.expand([shape[0], self.table.num_shared_experts()]);
            weights = Tensor::cat(vec![weights, shared], 1);
        }
        let local_ids = local_ids(self.table, layer.rank(), &slots.physical_ids)?;
        let batch = TensorBatch {
            hidden: x.clone(),
            local_ids: &local_ids,
            weights,
        };
        let terms = layer.experts.forward_tensor(parts.math, batch)?;
        let mut output = terms.sum_dim(1).squeeze_dim::<2>(1);
        if let Some(shared) = &layer.shared {
            output = shared.add_tensor(parts.math, x, self.num_valid, output)?;
        }
        Ok(finish(output.cast(dtype), routed, slots))
    }

    /// Empties the slots of padded rows.
    fn clear_padding(&self, routed: &mut Routed) {
        let from = self.num_valid * self.layer.gate.top_k();
        routed
            .topk_ids
            .iter_mut()
            .skip(from)
            .for_each(|id| *id = -1);
        routed
            .topk_weights
            .iter_mut()
            .skip(from)
            .for_each(|w| *w = 0.0);
    }

    /// Counts the load and selects the replica for each slot, those of fused shared experts
    /// included.
    fn slots(&self, routed: &Routed) -> Result<Slots, FusedMoeError> {
        let parts = &self.layer.parts;
        let routed_k = self.layer.gate.top_k();
        let (experts, shared) = (
            self.table.num_logical_experts(),
            self.table.num_shared_experts(),
        );
        let top_k = routed_k + shared;
        let mut load = StepLoad::new(self.table);
        load.record(&routed.topk_ids, routed_k, routed.topk_ids.len() / routed_k)?;

        let mut logical = Vec::with_capacity(routed.topk_ids.len() / routed_k * top_k);
        for (row, ids) in routed.topk_ids.chunks_exact(routed_k).enumerate() {
            logical.extend_from_slice(ids);
            let valid = row < self.num_valid;
            logical.extend((experts..experts + shared).map(|e| if valid { e as i64 } else { -1 }));
        }
        let counts = match parts.selector.counts_needed() {
            CountsNeeded::None => None,
            CountsNeeded::ThisStep => Some(parts.dispatcher.exchange_counts(load.counts())?),
            CountsNeeded::PreviousStep => Some(
                parts
                    .dispatcher
                    .exchange_counts(&parts.previous.get(experts))?,
            ),
            other => {
                return Err(FusedMoeError::Config(format!(
                    "the replica selector needs {other:?}, which the layer cannot give"
                )));
            }
        };
        parts.previous.set(load.counts());
        let mut context = SelectContext::new(self.table, self.layer.rank(), top_k);
        if let Some(counts) = &counts {
            context = context.with_counts(counts);
        }
        let mut physical_ids = vec![-1; logical.len()];
        parts
            .selector
            .select(&context, &logical, &mut physical_ids)?;
        Ok(Slots {
            physical_ids,
            top_k,
            load,
        })
    }

    /// The weight of each slot, those of fused shared experts included.
    fn slot_weights(&self, routed: &Routed, rows: Rows<'_>) -> Result<Vec<f32>, FusedMoeError> {
        let num_shared = self.table.num_shared_experts();
        let (Some(shared), 1..) = (&self.layer.shared, num_shared) else {
            return Ok(routed.topk_weights.clone());
        };
        let parts = &self.layer.parts;
        let shared = shared.row_weights(&parts.kernel, rows, parts.hidden_size)?;
        let routed = routed.topk_weights.chunks_exact(self.layer.gate.top_k());
        Ok(routed
            .zip(shared)
            .flat_map(|(weights, shared)| {
                weights
                    .iter()
                    .copied()
                    .chain(std::iter::repeat_n(shared, num_shared))
            })
            .collect())
    }

    /// The experts of this rank over the rows that were dispatched to it.
    fn experts(
        &self,
        dispatched: &Dispatched<'_>,
        top_k: usize,
        device: &Device,
    ) -> Result<ExpertOutputs, FusedMoeError> {
        let parts = &self.layer.parts;
        let Dispatched {
            hidden,
            local_ids,
            weights,
            ..
        } = dispatched;
        let rows = hidden.as_rows();
        let batch = ExpertBatch::new(rows, parts.hidden_size, local_ids, weights, top_k)?;
        if self.kernels || batch.num_rows() == 0 {
            let (kernel, experts) = (&parts.kernel, &self.layer.experts);
            return experts.forward_rows(kernel, parts.math, batch, parts.reduction);
        }
        let batch = TensorBatch {
            hidden: rows_tensor(hidden, [batch.num_rows(), parts.hidden_size], device),
            local_ids,
            weights: float_tensor(weights.to_vec(), [batch.num_rows(), top_k], device),
        };
        let terms = self.layer.experts.forward_tensor(parts.math, batch)?;
        Ok(match parts.reduction {
            Reduction::PerRank => ExpertOutputs::Summed(host_values(terms.sum_dim(1))?),
            Reduction::PerSlot => ExpertOutputs::PerSlot(host_values(terms)?),
        })
    }
}

fn finish(output: Tensor<2>, routed: Routed, slots: Slots) -> FusedMoeOutput {
    FusedMoeOutput {
        output,
        topk_ids: routed.topk_ids,
        topk_weights: routed.topk_weights,
        physical_ids: slots.physical_ids,
        load: slots.load,
    }
}

fn rows_tensor(rows: &HiddenRows<'_>, shape: [usize; 2], device: &Device) -> Tensor<2> {
    let values = match rows {
        HiddenRows::F32(values) => values.to_vec(),
        HiddenRows::Bf16(values) => values.iter().map(|v| v.to_f32()).collect(),
    };
    float_tensor(values, shape, device)
}

fn host_values<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>, FusedMoeError> {
    Ok(Floats::new(tensor)?.as_slice().to_vec())
}
