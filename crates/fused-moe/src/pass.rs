//! The steps of a forward pass.

use std::iter::repeat_n;

use burn::tensor::{DType, Device, Tensor};
use moekit_kernels::{ExpertBatch, Routed, RouterWeight, Rows};
use moekit_routing::{
    CountsNeeded, ExpertRouting, RoutingTable, SelectContext, SelectReplica, StepLoad,
};

use crate::FusedMoeError;
use crate::dispatch::{ExpertOutputs, HiddenRows, RoutedTokens, local_ids};
use crate::experts::{ExpertMath, Experts, Reduction, TensorBatch};
use crate::host::{Floats, HostTensor, float_tensor, output_tensor};
use crate::layer::{FusedMoe, FusedMoeOutput};

/// One forward pass: one snapshot of the routing table from gate to combine.
pub(crate) struct Pass<'a> {
    pub(crate) layer: &'a FusedMoe,
    pub(crate) table: &'a RoutingTable,
    /// Whether the CPU kernels do the work, or tensor operations.
    pub(crate) kernels: bool,
    /// Where the tensors are.
    pub(crate) device: Device,
}

/// The slots of a batch: those of routed experts, then those of fused shared experts.
struct Slots {
    /// `[num_tokens, top_k]`
    physical_ids: Vec<i64>,
    top_k: usize,
    load: StepLoad,
}

/// A set of experts and how it is computed.
#[derive(Clone, Copy)]
struct Work<'a> {
    experts: &'a Experts,
    math: ExpertMath,
    reduction: Reduction,
}

impl Pass<'_> {
    /// The pass over host memory, on one rank and on many.
    pub(crate) fn on_host(&self, hidden: Tensor<2>) -> Result<FusedMoeOutput, FusedMoeError> {
        let (gate, parts) = (&self.layer.gate, &self.layer.parts);
        let (shape, dtype) = (hidden.dims(), hidden.dtype());
        let host = HostTensor::new(hidden.clone())?;
        let rows = host.rows()?;
        let routed = if self.kernels || shape[0] == 0 {
            gate.route_rows(&parts.kernel, rows, shape[1])?
        } else {
            gate.route_tensor(&parts.kernel, hidden.cast(DType::F32))?
                .routed
        };
        let slots = self.slots(&routed)?;
        let weights = self.slot_weights(&routed, rows)?;
        let (ids, top_k) = (&slots.physical_ids, slots.top_k);
        let tokens = RoutedTokens::new(rows, shape[1], ids, &weights, top_k, self.table)?;
        let work = Work {
            experts: &self.layer.experts,
            math: parts.math,
            reduction: parts.reduction,
        };
        let mut output = self.exchange(work, &tokens)?;
        if let Some(terms) = self.shared_rows(rows, shape[0])? {
            output
                .iter_mut()
                .zip(terms)
                .for_each(|(sum, term)| *sum += term);
        }
        Ok(finish(
            output_tensor(output, shape, dtype, &self.device),
            routed,
            slots,
        ))
    }

    /// The pass in tensor operations, on one rank.
    pub(crate) fn in_tensors(&self, hidden: Tensor<2>) -> Result<FusedMoeOutput, FusedMoeError> {
        let (layer, parts) = (self.layer, &self.layer.parts);
        let (shape, dtype) = (hidden.dims(), hidden.dtype());
        if shape[0] == 0 {
            let routed = Routed::default();
            let slots = self.slots(&routed)?;
            return Ok(finish(hidden, routed, slots));
        }
        let x = hidden.cast(DType::F32);
        let routed = layer.gate.route_tensor(&parts.kernel, x.clone())?;
        let (mut weights, routed) = (routed.weights, routed.routed);
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
        if let Some((shared, mlp)) = self.separate_shared() {
            let batch = TensorBatch {
                weights: shared.tensor_weights(&x),
                hidden: x,
                local_ids: &vec![0; shape[0]],
            };
            let terms = mlp.experts.forward_tensor(mlp.math, batch)?;
            output = output + terms.squeeze_dim::<2>(1);
        }
        Ok(finish(output.cast(dtype), routed, slots))
    }

    /// Counts the load and selects the replica for each slot, those of fused shared experts
    /// included.
    fn slots(&self, routed: &Routed) -> Result<Slots, FusedMoeError> {
        let parts = &self.layer.parts;
        let routed_k = self.layer.gate.top_k();
        let experts = self.table.num_logical_experts();
        let shared = experts..experts + self.table.num_shared_experts();
        let top_k = routed_k + shared.len();
        let mut load = StepLoad::new(self.table);
        load.record(&routed.topk_ids, routed_k, routed.topk_ids.len() / routed_k)?;

        let with_shared = |ids: &[i64]| -> Vec<i64> {
            ids.iter()
                .copied()
                .chain(shared.clone().map(|e| e as i64))
                .collect()
        };
        let logical: Vec<i64> = routed
            .topk_ids
            .chunks_exact(routed_k)
            .flat_map(with_shared)
            .collect();
        let exchange = |counts: &[u64]| parts.dispatcher.exchange_counts(counts);
        let counts = match parts.selector.counts_needed() {
            CountsNeeded::None => None,
            CountsNeeded::ThisStep => Some(exchange(load.counts())?),
            CountsNeeded::PreviousStep => Some(exchange(&parts.previous.get(experts))?),
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
        let weights = routed
            .topk_weights
            .chunks_exact(self.layer.gate.top_k())
            .zip(shared);
        let row = |(weights, shared): (&[f32], f32)| -> Vec<f32> {
            weights
                .iter()
                .copied()
                .chain(repeat_n(shared, num_shared))
                .collect()
        };
        Ok(weights.flat_map(row).collect())
    }

    /// The shared experts that are computed apart, on this rank whole or in part.
    fn separate_shared(&self) -> Option<(&crate::SharedExperts, Work<'_>)> {
        let shared = self.layer.shared.as_ref()?;
        let math = ExpertMath {
            router_weight: RouterWeight::OnOutput,
            ..self.layer.parts.math
        };
        let work = Work {
            experts: shared.mlp.as_ref()?,
            math,
            reduction: Reduction::PerRank,
        };
        Some((shared, work))
    }

    /// What shared experts that are computed apart add to the output, `[num_tokens, hidden_size]`.
    fn shared_rows(
        &self,
        rows: Rows<'_>,
        num_tokens: usize,
    ) -> Result<Option<Vec<f32>>, FusedMoeError> {
        let Some((shared, work)) = self.separate_shared() else {
            return Ok(None);
        };
        let parts = &self.layer.parts;
        let weights = shared.row_weights(&parts.kernel, rows, parts.hidden_size)?;
        let Some(sharding) = &shared.sharding else {
            let ids = vec![0; num_tokens];
            let outputs = self.compute(work, &rows.try_into()?, &ids, &weights, 1)?;
            let (ExpertOutputs::Summed(terms) | ExpertOutputs::PerSlot(terms)) = outputs;
            return Ok(Some(terms));
        };
        let (table, shards) = (sharding.table(), sharding.num_shards());
        let ids: Vec<i64> = (0..num_tokens).flat_map(|_| 0..shards as i64).collect();
        let weights: Vec<f32> = weights.iter().flat_map(|&w| repeat_n(w, shards)).collect();
        let width = parts.hidden_size;
        let tokens = RoutedTokens::new(rows, width, &ids, &weights, shards, table)?;
        Ok(Some(self.exchange(work, &tokens)?))
    }

    /// Dispatch, experts, combine: `[num_tokens, hidden_size]`.
    fn exchange(
        &self,
        work: Work<'_>,
        tokens: &RoutedTokens<'_>,
    ) -> Result<Vec<f32>, FusedMoeError> {
        let dispatcher = &self.layer.parts.dispatcher;
        let received = dispatcher.dispatch(tokens)?;
        let (hidden, ids, weights) = (&received.hidden, &received.local_ids, &received.weights);
        let outputs = self.compute(work, hidden, ids, weights, tokens.top_k)?;
        let output = dispatcher.combine(outputs, received.handle)?;
        if output.len() == tokens.hidden.len() {
            return Ok(output);
        }
        let expected = [tokens.num_tokens(), tokens.hidden_size];
        Err(FusedMoeError::shape(
            "the combined output",
            &[output.len()],
            expected,
        ))
    }

    /// A set of experts over rows in host memory.
    fn compute(
        &self,
        work: Work<'_>,
        hidden: &HiddenRows<'_>,
        local_ids: &[i64],
        weights: &[f32],
        top_k: usize,
    ) -> Result<ExpertOutputs, FusedMoeError> {
        let parts = &self.layer.parts;
        let rows = hidden.as_rows();
        let batch = ExpertBatch::new(rows, parts.hidden_size, local_ids, weights, top_k)?;
        let num_rows = batch.num_rows();
        if self.kernels || num_rows == 0 {
            return work
                .experts
                .forward_rows(&parts.kernel, work.math, batch, work.reduction);
        }
        let batch = TensorBatch {
            hidden: rows_tensor(hidden, [num_rows, parts.hidden_size], &self.device),
            local_ids,
            weights: float_tensor(weights.to_vec(), [num_rows, top_k], &self.device),
        };
        let terms = work.experts.forward_tensor(work.math, batch)?;
        Ok(match work.reduction {
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
