//! Checkpoints with `quant_method = "fp8"`: E4M3 weights with a scale per block (DeepSeek-V3), per
//! channel or per tensor.
//!
//! | tensor of a linear `P` | shape | |
//! |---|---|---|
//! | `P.weight` | `[out, in]` | E4M3 |
//! | `P.weight_scale_inv` | `[ceil(out / b0), ceil(in / b1)]` | with `weight_block_size = [b0, b1]`; a multiplier in spite of its name |
//! | `P.weight_scale` | `[1]`, or `[out, 1]` | without; the shape says which |
//! | `P.input_scale` | `[1]` | with `activation_scheme = "static"` |
//!
//! A weight is its code times the scale of its block. Blocks of any size may be partial at the
//! edges. A linear that an exclusion list names may be stored as floats.

mod config;
mod linear;

use moekit_quant::{
    ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_linears,
    register_quant_backend,
};
use moekit_routing::ExpertRouting;

pub use config::{ActivationScheme, Fp8};

#[typetag::serde(name = "fp8")]
impl QuantBackend for Fp8 {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let format = self.format()?;
        load_linears(layer, tensors, routing, &|site, tensors| {
            format.load(site, tensors)
        })
    }
}

register_quant_backend!(
    Fp8,
    name: "fp8",
    summary: "E4M3 weights with scales per block, channel or tensor",
    example: Fp8 {
        weight_block_size: Some([128, 128]),
        ..Fp8::default()
    },
);
