//! `config.json`: what it says of the layers, and that they can be loaded.

use arbitrary::Unstructured;
use moekit_checkpoint::ModelConfig;
use moekit_quant::{MoeLayerSpec, backend_for};
use serde_json::Value;

use crate::layers::first;
use crate::loading::{settle, sound};
use crate::source::ObedientSource;

/// Names by which families tell how experts are stored.
const NAMES: &[&str] = &[
    "language_model.model.layers.1.mlp.gate.weight",
    "model.layers.0.feed_forward.experts.0.up_proj.weight",
    "model.layers.0.mlp.experts.gate_up_proj",
    "model.layers.1.mlp.experts.0.up_proj.weight",
];

/// Reads a configuration, and loads an expert of the first layer that it speaks of.
pub fn config(data: &[u8]) {
    let Ok(config) = serde_json::from_slice::<Value>(data) else {
        return;
    };
    for names in [&[][..], NAMES] {
        let Ok(model) = ModelConfig::new(&config, names.iter().copied()).model() else {
            continue;
        };
        assert!(model.layers.is_sorted_by(|a, b| a.layer < b.layer));
        assert!(model.layers.iter().all(|layer| layer.check().is_ok()));
        let Ok(backend) = backend_for(config.get("quantization_config")) else {
            continue;
        };
        let Some(layer) = model.layers.first().filter(|layer| is_small(layer)) else {
            continue;
        };
        let source = ObedientSource::arbitrary(&mut Unstructured::new(&[])).expect("of zeros");
        if let Ok(weights) = settle(&*backend, layer, &source, &first(layer.num_experts)) {
            sound(&weights);
        }
    }
}

fn is_small(layer: &MoeLayerSpec) -> bool {
    let widths = [
        Some(layer.intermediate_size),
        layer.shared.as_ref().map(|s| s.intermediate_size),
    ];
    let mut areas = widths
        .into_iter()
        .flatten()
        .map(|width| width.saturating_mul(layer.hidden_size));
    layer.num_experts <= 512 && areas.all(|area| area.saturating_mul(layer.num_experts) <= 1 << 18)
}
