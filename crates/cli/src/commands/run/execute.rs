//! One layer on every rank of the group, and on one rank to compare.

use std::sync::Arc;
use std::time::{Duration, Instant};

use moekit::burn::tensor::{DType, Device, Tensor, TensorData};
use moekit::checkpoint::Checkpoint;
use moekit::fused_moe::{
    ForwardOptions, FusedMoe, FusedMoeConfig, FusedMoeError, GateTensors, LayerRouting, Local,
    TokenDispatcher,
};
use moekit::kernels::{ActivationQuantMode, CpuKernel};
use moekit::parallel::EpDispatcher;
use moekit::placement::even_offsets;
use moekit::quant::{MoeLayerSpec, QuantBackend};
use moekit::routing::{
    PhysicalExpert, Placement, Rank, ReplicaSelector, RoutingTable, RoutingTableProvider, Topology,
};

use super::SharedMode;
use super::input::Activations;
use super::ranks::Ranks;
use crate::error::{CliError, Result};

/// What all layers of a run share.
pub(super) struct Group<'a> {
    pub(super) ranks: &'a Ranks,
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) backend: &'a dyn QuantBackend,
    pub(super) topology: Topology,
    pub(super) selector: ReplicaSelector,
    pub(super) kernel: CpuKernel,
    pub(super) shared: SharedMode,
    pub(super) activation_quant: ActivationQuantMode,
}

/// What came of one layer.
pub(super) struct LayerRun {
    pub(super) layer: usize,
    pub(super) tokens: usize,
    pub(super) hidden_size: usize,
    pub(super) top_k: usize,
    /// `[num_tokens, hidden_size]`
    pub(super) output: Vec<f32>,
    /// `[num_tokens, top_k]`
    pub(super) topk_ids: Vec<i64>,
    /// `[num_tokens, top_k]`
    pub(super) topk_weights: Vec<f32>,
    /// Slots of each rank.
    pub(super) experts_per_rank: Vec<usize>,
    /// Routed tokens that each rank's experts served.
    pub(super) tokens_per_rank: Vec<u64>,
    /// Of the slowest rank.
    pub(super) time: Duration,
    /// With several ranks that are threads.
    pub(super) max_difference_from_one_rank: Option<f32>,
}

/// What one rank contributes.
#[derive(Default)]
pub(super) struct RankRun {
    pub(super) output: Vec<f32>,
    pub(super) topk_ids: Vec<i64>,
    pub(super) topk_weights: Vec<f32>,
    pub(super) physical_ids: Vec<i64>,
    pub(super) time: Duration,
}

/// The routing table of a layer while it runs.
#[derive(Debug)]
struct Fixed(Arc<RoutingTable>);

impl RoutingTableProvider for Fixed {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.0.clone()
    }
}

impl Group<'_> {
    /// Runs a layer under a placement. Ranks that are threads are compared with one rank; a process
    /// would have to read all experts for that. `None` on a process that does not report.
    pub(super) fn run(
        &self,
        spec: &MoeLayerSpec,
        placement: Placement,
        input: &Activations,
    ) -> Result<Option<LayerRun>> {
        spec.check()?;
        let fused = match (self.shared, &spec.shared) {
            (SharedMode::Fused, Some(shared)) => shared.num_experts,
            _ => 0,
        };
        let table = Arc::new(RoutingTable::new(
            placement,
            self.topology.clone(),
            fused,
            0,
        )?);
        let gate = GateTensors::read(spec, self.checkpoint)?;
        let num_ranks = table.num_ranks();
        let shares = even_offsets(input.len() / spec.hidden_size, num_ranks);
        let ranks = self.ranks.run(num_ranks, |comm| {
            let rank = comm.rank();
            let share = shares[rank.index()]..shares[rank.index() + 1];
            let dispatcher: Arc<dyn TokenDispatcher> = match num_ranks {
                1 => Arc::new(Local),
                _ => Arc::new(EpDispatcher::new(comm.clone())),
            };
            let layer = self.layer(spec, table.clone(), gate.clone(), rank, dispatcher)?;
            // Loading is not part of the time of a forward pass.
            comm.barrier().map_err(FusedMoeError::dispatch)?;
            forward(&layer, spec, input, share)
        })?;
        let Some(ranks) = ranks else {
            return Ok(None);
        };
        let mut run = gather(spec, &table, ranks);
        if num_ranks > 1 && matches!(self.ranks, Ranks::Threads) {
            run.max_difference_from_one_rank =
                Some(self.compare(spec, gate, input, &run.output)?);
        }
        Ok(Some(run))
    }

    /// The largest difference of an output from that of one rank.
    fn compare(
        &self,
        spec: &MoeLayerSpec,
        gate: GateTensors,
        input: &Activations,
        output: &[f32],
    ) -> Result<f32> {
        let experts = spec.num_experts;
        let placement = Placement::new(experts, (0..experts).collect(), vec![0, experts])?;
        let table = Arc::new(RoutingTable::new(placement, Topology::new(1)?, 0, 0)?);
        let layer = self.layer(spec, table, gate, Rank::new(0), Arc::new(Local))?;
        let alone = forward(&layer, spec, input, 0..input.len() / spec.hidden_size)?;
        largest_difference(&alone.output, output)
    }

    fn layer(
        &self,
        spec: &MoeLayerSpec,
        table: Arc<RoutingTable>,
        gate: GateTensors,
        rank: Rank,
        dispatcher: Arc<dyn TokenDispatcher>,
    ) -> Result<FusedMoe, FusedMoeError> {
        let provider: Arc<dyn RoutingTableProvider> = Arc::new(Fixed(table));
        let routing = LayerRouting::new(provider.clone(), rank);
        let weights = self.backend.load_experts(spec, self.checkpoint, &routing)?;
        FusedMoeConfig::from_spec(spec)
            .with_routing(provider)
            .with_dispatcher(dispatcher)
            .with_selector(self.selector.clone())
            .with_kernel(self.kernel.clone())
            .with_activation_quant(self.activation_quant)
            .init_packed(gate, Arc::new(weights), &Device::flex())
    }
}

/// The largest difference of an output from that of one rank. NaN equals NaN: it comes from the
/// input.
fn largest_difference(alone: &[f32], output: &[f32]) -> Result<f32> {
    if alone.len() != output.len() {
        return Err(CliError::usage(format!(
            "the ranks give {} values of output, one rank gives {}",
            output.len(),
            alone.len()
        )));
    }
    let mut largest = 0.0_f32;
    for (i, (&expected, &got)) in alone.iter().zip(output).enumerate() {
        if expected == got || (expected.is_nan() && got.is_nan()) {
            continue;
        }
        let difference = (expected - got).abs();
        if !difference.is_finite() {
            return Err(CliError::usage(format!(
                "value {i} of the output is {got:e}, on one rank {expected:e}"
            )));
        }
        largest = largest.max(difference);
    }
    Ok(largest)
}

/// One rank's forward pass over its share of the tokens.
fn forward(
    layer: &FusedMoe,
    spec: &MoeLayerSpec,
    input: &Activations,
    share: std::ops::Range<usize>,
) -> Result<RankRun, FusedMoeError> {
    let width = spec.hidden_size;
    let shape = [share.len(), width];
    let values = share.start * width..share.end * width;
    let device = Device::flex();
    let data = match input {
        Activations::F32(all) => TensorData::new(all[values].to_vec(), shape),
        Activations::Bf16(all) => TensorData::new(all[values].to_vec(), shape),
    };
    let dtype = data.dtype();
    let hidden = Tensor::<2>::from_data(data, (&device, dtype));
    let start = Instant::now();
    let result = layer.forward_detailed(hidden, ForwardOptions::new())?;
    let time = start.elapsed();
    let output = result
        .output
        .cast(DType::F32)
        .into_data()
        .try_to_vec()
        .map_err(|e| FusedMoeError::Device(e.to_string()))?;
    Ok(RankRun {
        output,
        topk_ids: result.topk_ids,
        topk_weights: result.topk_weights,
        physical_ids: result.physical_ids,
        time,
    })
}

fn gather(spec: &MoeLayerSpec, table: &RoutingTable, ranks: Vec<RankRun>) -> LayerRun {
    let mut run = LayerRun {
        layer: spec.layer,
        tokens: 0,
        hidden_size: spec.hidden_size,
        top_k: spec.top_k,
        output: Vec::new(),
        topk_ids: Vec::new(),
        topk_weights: Vec::new(),
        experts_per_rank: (0..table.num_ranks())
            .map(|r| table.num_local_experts(Rank::new(r)).unwrap_or(0))
            .collect(),
        tokens_per_rank: vec![0; table.num_ranks()],
        time: Duration::ZERO,
        max_difference_from_one_rank: None,
    };
    for rank in ranks {
        run.output.extend(rank.output);
        run.topk_ids.extend(rank.topk_ids);
        run.topk_weights.extend(rank.topk_weights);
        run.time = run.time.max(rank.time);
        let owners = rank
            .physical_ids
            .iter()
            .filter_map(|&id| table.owner(PhysicalExpert::from_raw(id)?));
        for owner in owners {
            run.tokens_per_rank[owner.index()] += 1;
        }
    }
    run.tokens = run.topk_ids.len() / spec.top_k;
    run
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_that_is_no_number_is_an_error() {
        let (nan, inf) = (f32::NAN, f32::INFINITY);
        assert_eq!(
            largest_difference(&[1.0, nan, inf], &[1.5, nan, inf]).unwrap(),
            0.5
        );
        for (alone, output) in [
            ([1.0], [nan]),
            ([nan], [1.0]),
            ([inf], [1.0]),
            ([inf], [-inf]),
        ] {
            let error = largest_difference(&alone, &output).unwrap_err();
            assert!(
                error.to_string().starts_with("value 0 of the output"),
                "{error}"
            );
        }
        assert!(largest_difference(&[1.0], &[]).is_err());
    }
}
