//! Checkpoints in the [compressed-tensors](https://github.com/vllm-project/compressed-tensors)
//! format, `quant_method = "compressed-tensors"`.
//!
//! Tensors of a linear `P` with weight `[out, in]`, by the format of its group:
//!
//! | format | codes | `P.weight_scale` | more | a weight is |
//! |---|---|---|---|---|
//! | `pack-quantized` | `P.weight_packed` i32 `[out, ceil(in * bits / 32)]` | float, by strategy | `weight_shape`; `weight_zero_point` i32 `[ceil(out * bits / 32), groups]` | `(q - zero) * scale` |
//! | `float-quantized` | `P.weight` E4M3 | float, by strategy | `input_scale` | `q * scale` |
//! | `int-quantized` | `P.weight` i8 | float, by strategy | `weight_zero_point` i8 | `(q - zero) * scale` |
//! | `naive-quantized` | `P.weight` E4M3 or i8 | as the two above | | |
//! | `nvfp4-pack-quantized` | `P.weight_packed` E2M1, u8 `[out, in / 2]` | E4M3 `[out, in / 16]` | `weight_global_scale`, `input_global_scale` | `q * scale / weight_global_scale` |
//! | `mxfp4-pack-quantized` | `P.weight_packed` E2M1, u8 `[out, in / 2]` | E8M0 `[out, in / 32]` | | `q * 2^(scale - 127)` |
//! | `mxfp8-quantized` | `P.weight` E4M3 | E8M0 `[out, in / 32]` | | `q * 2^(scale - 127)` |
//!
//! Strategies are tensor `[1]`, channel `[out, 1]`, group `[out, in / g]` and block
//! `[ceil(out / b0), ceil(in / b1)]`. Packed integers are stored plus half of their range, the first
//! in the lowest bits. Every linear has the format of its own group: exact targets before regular
//! expressions before classes; what `ignore` names or no target reaches is stored as floats. Gate
//! and up keep the global scale that each has.

mod config;
mod linear;
mod scheme;
mod targets;
mod zero_points;

use moekit_quant::{
    ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_float_linear,
    load_linears, register_quant_backend,
};
use moekit_routing::ExpertRouting;

pub use config::{Block, CompressedTensors, ConfigGroup, Dynamic, QuantizationArgs};

#[typetag::serde(name = "compressed-tensors")]
impl QuantBackend for CompressedTensors {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let targets = self.targets()?;
        load_linears(layer, tensors, routing, &|site, tensors| match targets
            .scheme_of(site.module())?
        {
            Some(scheme) => linear::load(scheme, site, tensors),
            None => load_float_linear(site, tensors),
        })
    }
}

register_quant_backend!(
    CompressedTensors,
    name: "compressed-tensors",
    summary: "int4, int8, FP8, NVFP4, MXFP4 and MXFP8 as compressed-tensors stores them",
    example: config::example(),
);
