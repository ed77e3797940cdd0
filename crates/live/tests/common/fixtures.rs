//! Layers of the checkpoints that the repository holds.

use std::path::Path;
use std::sync::Arc;

use moekit_checkpoint::Checkpoint;
use moekit_fused_moe::{ActivationQuantMode, FusedMoeConfig, Reduction};
use moekit_live::{CheckpointExperts, ExpertSource};
use moekit_placement::link_plugins;
use moekit_quant::{QuantBackend, TensorSource, backend_for};
use moekit_routing::LogicalExpert;

use super::Model;

/// All layers of a checkpoint, and all of its experts to compare with.
pub fn model(name: &str, reduction: Reduction, quantized_inputs: bool) -> Model {
    link_plugins!(
        moekit_quant_unquantized,
        moekit_quant_fp8,
        moekit_quant_mxfp4,
        moekit_quant_compressed_tensors,
    );
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/checkpoints");
    let checkpoint = Checkpoint::open(fixtures.join(name)).unwrap();
    let specs = checkpoint.model().unwrap().layers;
    let backend = backend_for(checkpoint.quantization_config()).unwrap();
    let backend: Arc<dyn QuantBackend> = backend.into();
    let tensors: Arc<dyn TensorSource> = Arc::new(checkpoint);
    let source = CheckpointExperts::new(backend, tensors, specs.clone());
    let mode = match quantized_inputs {
        true => ActivationQuantMode::Emulate,
        false => ActivationQuantMode::Off,
    };
    let (mut parts, mut experts) = (Vec::new(), Vec::new());
    for (layer, spec) in specs.iter().enumerate() {
        let config = FusedMoeConfig::from_spec(spec)
            .with_reduction(reduction)
            .with_activation_quant(mode);
        parts.push(source.parts(layer, config).unwrap());
        let read = |e| source.read(layer, LogicalExpert::new(e)).unwrap();
        experts.push((0..spec.num_experts).map(read).collect());
    }
    Model::new(parts, experts, specs[0].hidden_size)
}
