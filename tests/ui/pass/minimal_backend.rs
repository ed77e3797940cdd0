//! The least that a quantization backend is. It must compile with every later version of the trait.

use moekit_quant::{
    ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_float_linear,
    load_linears,
};
use moekit_routing::ExpertRouting;

#[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
struct Minimal {}

#[typetag::serde(name = "minimal")]
impl QuantBackend for Minimal {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        load_linears(layer, tensors, routing, &load_float_linear)
    }
}

moekit_quant::register_quant_backend! {
    Minimal,
    name: "minimal",
    summary: "The least that a quantization backend is",
    example: Minimal {},
}

fn main() {
    let config = serde_json::json!({"quant_method": "minimal", "some": "other key"});
    let backend = moekit_quant::backend_for(Some(&config)).unwrap();
    assert_eq!(backend.name(), "minimal");
}
