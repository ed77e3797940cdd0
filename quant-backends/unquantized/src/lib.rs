//! Experts stored in f32, f16 or bf16: checkpoints without `quantization_config`.

use moekit_quant::{
    ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_float_linear,
    load_linears, register_quant_backend,
};
use moekit_routing::ExpertRouting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Experts stored as floats of 16 or 32 bits, each tensor in its own type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Unquantized {}

#[typetag::serde(name = "unquantized")]
impl QuantBackend for Unquantized {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        load_linears(layer, tensors, routing, &load_float_linear)
    }
}

register_quant_backend!(
    Unquantized,
    name: "unquantized",
    summary: "f32, f16 and bf16 weights, as they are",
    example: Unquantized {},
);
