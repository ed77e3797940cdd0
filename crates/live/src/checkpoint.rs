//! Layers and experts from a checkpoint, through any quantization backend.

use std::sync::Arc;

use moekit_fused_moe::{FusedMoeConfig, GateTensors};
use moekit_quant::{ExpertMlp, ExpertWeights, MoeLayerSpec, QuantBackend, TensorSource};
use moekit_routing::{LogicalExpert, Placement, Rank, RankView, RoutingTable, Topology};

use crate::error::SourceError;
use crate::{ExpertSource, LayerParts, LiveError};

/// The experts of a checkpoint, one at a time.
#[derive(Clone, Debug)]
pub struct CheckpointExperts {
    backend: Arc<dyn QuantBackend>,
    tensors: Arc<dyn TensorSource>,
    layers: Vec<MoeLayerSpec>,
}

impl CheckpointExperts {
    /// The experts of some layers of a checkpoint, in the order of the live layers.
    pub fn new(
        backend: Arc<dyn QuantBackend>,
        tensors: Arc<dyn TensorSource>,
        layers: Vec<MoeLayerSpec>,
    ) -> Self {
        Self {
            backend,
            tensors,
            layers,
        }
    }

    /// All of a layer but its routed experts: gate and shared experts, which are computed apart.
    ///
    /// # Arguments
    ///
    /// - `config` - how the layer computes, for example
    ///   [`FusedMoeConfig::from_spec`] with a kernel and a reduction.
    ///
    /// # Errors
    ///
    /// If there is no such layer or a tensor cannot be read.
    pub fn parts(&self, layer: usize, config: FusedMoeConfig) -> Result<LayerParts, LiveError> {
        let num_layers = self.layers.len();
        let unknown = LiveError::UnknownLayer { layer, num_layers };
        let spec = self.layers.get(layer).ok_or(unknown)?;
        let gate = GateTensors::read(spec, self.tensors.as_ref())?;
        let parts = LayerParts::new(spec.clone(), config, gate);
        if spec.shared.is_none() {
            return Ok(parts);
        }
        // As a rank that holds no routed expert sees it.
        let everything = (0..spec.num_experts).collect();
        let weights = self.load(spec, &[Vec::new(), everything])?;
        Ok(match weights.shared {
            Some(shared) => parts.with_shared(shared),
            None => parts,
        })
    }

    /// What rank 0 of these ranks holds.
    fn load(&self, spec: &MoeLayerSpec, ranks: &[Vec<usize>]) -> Result<ExpertWeights, LiveError> {
        let placement = Placement::from_ranks(spec.num_experts, ranks)?;
        let table = RoutingTable::new(placement, Topology::new(ranks.len())?, 0, 0)?;
        let view = RankView::new(Rank::new(0), Arc::new(table))?;
        Ok(self
            .backend
            .load_experts(spec, self.tensors.as_ref(), &view)?)
    }
}

impl ExpertSource for CheckpointExperts {
    fn read(&self, layer: usize, expert: LogicalExpert) -> Result<Arc<ExpertMlp>, SourceError> {
        let spec = self
            .layers
            .get(layer)
            .ok_or_else(|| format!("layer {layer} of {} does not exist", self.layers.len()))?;
        let mut alone = spec.clone();
        alone.shared = None;
        let wanted = expert.index();
        let others = (0..spec.num_experts).filter(|&other| other != wanted);
        let mut ranks = vec![vec![wanted]];
        ranks.extend((spec.num_experts > 1).then(|| others.collect()));
        let weights = self.load(&alone, &ranks)?;
        let found = weights.experts.into_iter().next();
        Ok(found.ok_or("the backend read nothing")?)
    }
}
