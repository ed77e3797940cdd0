//! One layer of a live rank: what it is made of, and what is in force.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use burn::tensor::{Device, Tensor};
use moekit_fused_moe::{
    Experts, ForwardOptions, FusedMoe, FusedMoeConfig, FusedMoeError, FusedMoeOutput, GateTensors,
    PackedExperts, PreparedExpert, PreparedExperts, TokenDispatcher,
};
use moekit_quant::{ExpertMlp, MoeLayerSpec, QuantError};
use moekit_routing::{
    CountsNeeded, CustomSelector, ExpertRouting, LogicalExpert, Rank, ReplicaSelector,
    RoutingError, RoutingTable, RoutingTableProvider, SelectContext, SelectReplica,
};

use crate::LiveError;
use crate::expert::{absent, encoded_size, prepared};

/// All of a layer but its routed experts: what every rank has, whatever it holds.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LayerParts {
    spec: MoeLayerSpec,
    config: FusedMoeConfig,
    gate: GateTensors,
    shared: Option<Arc<ExpertMlp>>,
    fused_shared: Vec<Arc<ExpertMlp>>,
}

impl LayerParts {
    /// A layer.
    ///
    /// # Arguments
    ///
    /// - `config` - how the layer computes; its routing and its dispatcher are replaced.
    pub fn new(spec: MoeLayerSpec, config: FusedMoeConfig, gate: GateTensors) -> Self {
        Self {
            spec,
            config,
            gate,
            shared: None,
            fused_shared: Vec::new(),
        }
    }

    /// Shared experts that every rank computes for its own tokens.
    #[must_use]
    pub fn with_shared(mut self, shared: Arc<ExpertMlp>) -> Self {
        self.shared = Some(shared);
        self
    }

    /// Shared experts as extra local slots of every rank.
    #[must_use]
    pub fn with_fused_shared(mut self, shared: Vec<Arc<ExpertMlp>>) -> Self {
        self.fused_shared = shared;
        self
    }

    /// How the layer computes.
    pub fn config(&self) -> &FusedMoeConfig {
        &self.config
    }

    /// The tensors of its gate.
    pub fn gate(&self) -> &GateTensors {
        &self.gate
    }

    /// The shared experts that every rank computes for its own tokens.
    pub fn shared(&self) -> Option<&Arc<ExpertMlp>> {
        self.shared.as_ref()
    }

    pub(crate) fn num_experts(&self) -> usize {
        self.spec.num_experts
    }

    pub(crate) fn num_fused_shared(&self) -> usize {
        self.fused_shared.len()
    }
}

/// What a layer becomes with a commit.
#[derive(Debug)]
pub(crate) struct NextLayer {
    pub(crate) table: Arc<RoutingTable>,
    /// By logical expert; more may be there than the table places here.
    pub(crate) weights: BTreeMap<LogicalExpert, Arc<PreparedExpert>>,
    /// Experts that no rank holds.
    pub(crate) absent: BTreeSet<LogicalExpert>,
    pub(crate) dispatcher: Arc<dyn TokenDispatcher>,
    pub(crate) selector: ReplicaSelector,
}

/// A layer as any thread may read it while it is rebalanced: weights and table are one value, which
/// a commit swaps. Readers never wait.
#[derive(Clone, Debug, Default)]
pub struct SharedLayer(Arc<ArcSwapOption<FusedMoe>>);

impl SharedLayer {
    /// The layer in force, `None` before the rank has entered a group.
    pub fn current(&self) -> Option<Arc<FusedMoe>> {
        self.0.load_full()
    }
}

/// A layer of a rank: weights and table in one value that is swapped whole.
#[derive(Debug)]
pub(crate) struct LiveLayer {
    pub(crate) parts: Arc<LayerParts>,
    current: SharedLayer,
    /// Experts that no rank holds, and that no token reaches.
    pub(crate) absent: BTreeSet<LogicalExpert>,
    /// Of the largest expert on any rank, as far as is known; what is lost still counts.
    pub(crate) expert_bytes: u64,
}

impl LiveLayer {
    pub(crate) fn new(parts: LayerParts) -> Self {
        Self {
            parts: Arc::new(parts),
            current: SharedLayer::default(),
            absent: BTreeSet::new(),
            expert_bytes: 0,
        }
    }

    /// The layer in force.
    pub(crate) fn current(&self) -> Option<Arc<FusedMoe>> {
        self.current.current()
    }

    /// The same for readers of other threads.
    pub(crate) fn shared(&self) -> SharedLayer {
        self.current.clone()
    }

    /// Puts weights and table into force, for whoever reads from now on.
    pub(crate) fn commit(&mut self, next: Arc<FusedMoe>, absent: BTreeSet<LogicalExpert>) {
        self.absent = absent;
        self.current.0.store(Some(next));
    }

    /// The experts that the rank holds, slot by slot; those that nobody holds are not among them.
    pub(crate) fn held(&self) -> Vec<(LogicalExpert, Arc<PreparedExpert>)> {
        let Some(layer) = self.current() else {
            return Vec::new();
        };
        let Experts::Packed(packed) = &layer.experts else {
            return Vec::new();
        };
        let table = layer.routing_table();
        let placed = table.placement().experts_of(layer.rank());
        let slots = placed.unwrap_or_default().iter().copied();
        slots
            .zip(packed.experts().experts().iter().cloned())
            .filter(|(expert, _)| !self.absent.contains(expert))
            .collect()
    }

    pub(crate) fn generation(&self) -> u64 {
        self.current()
            .map_or(0, |layer| layer.routing_table().generation())
    }
}

/// Makes the layer that a commit puts into force.
pub(crate) fn build(
    parts: &LayerParts,
    previous: Option<&FusedMoe>,
    next: &NextLayer,
) -> Result<FusedMoe, LiveError> {
    let rank = next.dispatcher.rank();
    let experts = local_experts(parts, previous, next, rank)?;
    let selector = if next.absent.is_empty() {
        next.selector.clone()
    } else {
        Present::of(next).into()
    };
    let (table, dispatcher) = (next.table.clone(), next.dispatcher.clone());
    let layer = match previous {
        Some(previous) => {
            let experts = Experts::Packed(PackedExperts::from_prepared(experts));
            previous.with_placement(&table, experts, dispatcher)?
        }
        None => parts
            .config
            .clone()
            .with_routing(Arc::new(Fixed(table)))
            .with_dispatcher(dispatcher)
            .init_prepared(parts.gate.clone(), experts, parts.shared(), &Device::flex())?,
    };
    Ok(layer.with_selector(selector))
}

/// The experts of a rank's slots, fused shared ones last.
fn local_experts(
    parts: &LayerParts,
    previous: Option<&FusedMoe>,
    next: &NextLayer,
    rank: Rank,
) -> Result<PreparedExperts, LiveError> {
    let spec = &parts.spec;
    let (hidden, width) = (spec.hidden_size, spec.intermediate_size);
    let placed = next.table.placement().experts_of(rank).unwrap_or_default();
    let mut experts = Vec::with_capacity(placed.len() + parts.fused_shared.len());
    let mut nobody: Option<Arc<PreparedExpert>> = None;
    for expert in placed {
        let weights = match next.weights.get(expert) {
            Some(weights) => weights.clone(),
            None if next.absent.contains(expert) => match &nobody {
                Some(absent) => absent.clone(),
                None => {
                    let made = prepared(&absent(hidden, width, spec.activation.is_gated())?)?;
                    nobody.insert(made).clone()
                }
            },
            None => {
                return Err(LiveError::Config(format!(
                    "the next table places expert {expert} of layer {} on rank {rank}, which does not hold it",
                    spec.layer
                )));
            }
        };
        experts.push(weights);
    }
    experts.extend(fused_shared(parts, previous)?);
    let experts = PreparedExperts::from_experts(hidden, width, experts);
    Ok(experts.map_err(FusedMoeError::from)?)
}

/// The fused shared experts, of which the layer before has those that are in order.
fn fused_shared(
    parts: &LayerParts,
    previous: Option<&FusedMoe>,
) -> Result<Vec<Arc<PreparedExpert>>, LiveError> {
    let wanted = parts.fused_shared.len();
    if let Some(Experts::Packed(packed)) = previous.map(|layer| &layer.experts) {
        let local = packed.experts().experts();
        return Ok(local[local.len().saturating_sub(wanted)..].to_vec());
    }
    let prepared = parts.fused_shared.iter().map(|expert| prepared(expert));
    Ok(prepared.collect::<Result<_, _>>()?)
}

/// A table that never changes: a layer in force is replaced whole.
#[derive(Debug)]
struct Fixed(Arc<RoutingTable>);

impl RoutingTableProvider for Fixed {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.0.clone()
    }
}

/// Sends no token to an expert that nobody holds.
#[derive(Debug)]
struct Present {
    inner: ReplicaSelector,
    absent: BTreeSet<i64>,
}

impl Present {
    fn of(next: &NextLayer) -> CustomSelector {
        CustomSelector(Arc::new(Self {
            inner: next.selector.clone(),
            absent: next.absent.iter().map(|expert| expert.raw()).collect(),
        }))
    }
}

impl SelectReplica for Present {
    fn select(
        &self,
        context: &SelectContext<'_>,
        topk_ids: &[i64],
        physical: &mut [i64],
    ) -> Result<(), RoutingError> {
        let present = |id: &i64| if self.absent.contains(id) { -1 } else { *id };
        let ids: Vec<i64> = topk_ids.iter().map(present).collect();
        let Some(counts) = context.counts else {
            return self.inner.select(context, &ids, physical);
        };
        // Tokens that go nowhere are no load, on any rank.
        let experts = context.table.num_logical_experts().max(1);
        let mut counts = counts.to_vec();
        for rank in counts.chunks_mut(experts) {
            for &expert in &self.absent {
                if let Some(count) = usize::try_from(expert).ok().and_then(|e| rank.get_mut(e)) {
                    *count = 0;
                }
            }
        }
        self.inner
            .select(&context.with_counts(&counts), &ids, physical)
    }

    fn counts_needed(&self) -> CountsNeeded {
        self.inner.counts_needed()
    }
}

/// A token that could not be served: an expert that it needs is held by no rank just now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "token {token} of layer {layer} was not served: no rank holds expert {expert} until it is read from the checkpoint again"
)]
#[non_exhaustive]
pub struct Unserved {
    /// Position of the layer.
    pub layer: usize,
    /// Row of the batch.
    pub token: usize,
    /// The first expert of the token that is missing.
    pub expert: LogicalExpert,
}

/// What a forward pass of a live layer gives.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LiveOutput {
    /// The layer's output. The rows of tokens that were not served are NaN.
    pub inner: FusedMoeOutput,
    /// Tokens that were not served, ascending.
    pub unserved: Vec<Unserved>,
    /// Generation of the table that was in force.
    pub generation: u64,
}

/// One forward pass under one table.
pub(crate) fn forward(
    position: usize,
    layer: &FusedMoe,
    hidden: Tensor<2>,
    options: ForwardOptions,
) -> Result<LiveOutput, FusedMoeError> {
    let mut inner = layer.forward_detailed(hidden, options)?;
    let unserved = unserved(position, layer, &inner);
    if !unserved.is_empty() {
        inner.output = without(inner.output, &unserved);
    }
    Ok(LiveOutput {
        inner,
        unserved,
        generation: layer.routing_table().generation(),
    })
}

/// Tokens with an expert but no slot for it.
fn unserved(layer_index: usize, layer: &FusedMoe, output: &FusedMoeOutput) -> Vec<Unserved> {
    let top_k = layer.gate.top_k();
    let slots = top_k + layer.routing_table().num_shared_experts();
    let rows = output.topk_ids.chunks_exact(top_k);
    let physical = output.physical_ids.chunks_exact(slots);
    rows.zip(physical)
        .enumerate()
        .filter_map(|(token, (ids, slots))| {
            let missing = ids
                .iter()
                .zip(slots)
                .find(|(id, slot)| **id >= 0 && **slot < 0);
            Some(Unserved {
                layer: layer_index,
                token,
                expert: LogicalExpert::from_raw(*missing?.0)?,
            })
        })
        .collect()
}

/// The rows of those tokens replaced by NaN.
fn without(output: Tensor<2>, unserved: &[Unserved]) -> Tensor<2> {
    let [_, width] = output.dims();
    let like = (&output.device(), output.dtype());
    let nan = Tensor::full([1, width], f32::NAN, like);
    unserved.iter().fold(output, |output, row| {
        output.slice_assign([row.token..row.token + 1, 0..width], nan.clone())
    })
}

/// The bytes of the largest expert on its way.
pub(crate) fn largest<'a>(experts: impl Iterator<Item = &'a Arc<PreparedExpert>>) -> u64 {
    experts
        .map(|expert| encoded_size(expert))
        .max()
        .unwrap_or(0)
}

/// Whether the configuration, spec and weights of a layer fit each other is found when the first
/// layer is made; this finds what would be found too late.
pub(crate) fn check_parts(parts: &[LayerParts]) -> Result<(), LiveError> {
    let Some(first) = parts.first() else {
        return Err(LiveError::Config(
            "a live rank needs at least 1 layer".into(),
        ));
    };
    for layer in parts {
        if layer.num_experts() != first.num_experts() {
            return Err(LiveError::Quant(QuantError::Argument {
                what: "number of experts of a layer",
                got: layer.num_experts(),
                expected: format!("{}, as the first layer has", first.num_experts()),
            }));
        }
    }
    Ok(())
}
