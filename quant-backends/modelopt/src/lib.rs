//! Checkpoints of NVIDIA ModelOpt, `quant_method = "modelopt"`, and those of the same MXFP8 tensors
//! under `quant_method = "mxfp8"` ([`mxfp8`]).
//!
//! Tensors of a linear `P` with weight `[out, in]`, by `quant_algo`:
//!
//! | `quant_algo` | `P.weight` | `P.weight_scale` | more | a weight is |
//! |---|---|---|---|---|
//! | `FP8` | E4M3 `[out, in]` | f32 `[]` | `input_scale` | `q * weight_scale` |
//! | `FP8_PER_CHANNEL_PER_TOKEN` | E4M3 | f32 `[out]` | | `q * weight_scale[out]` |
//! | `FP8_PB_WO` | E4M3 | f32 `[ceil(out / 128), 1, ceil(in / 128), 1]` | | `q` times the scale of its block |
//! | `NVFP4` | E2M1, `u8 [out, in / 2]` | E4M3 `[out, in / 16]` | `weight_scale_2`, `input_scale` | `q * weight_scale * weight_scale_2` |
//! | `W4A16_NVFP4` | as `NVFP4` | | `weight_scale_2` | |
//! | `MXFP8` | E4M3 | E8M0 `[out, in / 32]` | | `q * 2^(weight_scale - 127)` |
//! | `MIXED_PRECISION` | by `quantized_layers` | | | |
//!
//! A linear that an exclusion list names may be stored as floats; every other one must have the
//! tensors of its algorithm. Gate and up keep the second-level scale that each has.

mod algorithm;
mod config;
mod linear;
pub mod mxfp8;

use moekit_quant::{
    ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_linears,
    register_quant_backend,
};
use moekit_routing::ExpertRouting;

pub use config::{LayerAlgorithm, ModelOpt};

#[typetag::serde(name = "modelopt")]
impl QuantBackend for ModelOpt {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let plan = self.plan()?;
        load_linears(layer, tensors, routing, &|site, tensors| {
            linear::load(&plan, site, tensors)
        })
    }
}

register_quant_backend!(
    ModelOpt,
    name: "modelopt",
    summary: "NVIDIA ModelOpt: FP8, NVFP4, MXFP8 and mixtures of them",
    example: ModelOpt {
        quant_algo: Some("NVFP4".to_owned()),
        exclude_modules: Some(vec!["lm_head".to_owned(), "*.mlp.gate".to_owned()]),
        ..ModelOpt::default()
    },
);
