//! Checkpoints with `quant_method = "mxfp4"`: the experts of gpt-oss.
//!
//! | tensor of a fused parameter `P` | shape | |
//! |---|---|---|
//! | `P_blocks` | `[E, out, in / 32, 16]` | byte `j` holds elements `2 * j` (low nibble) and `2 * j + 1`, E2M1 |
//! | `P_scales` | `[E, out, in / 32]` | E8M0 |
//! | `P_bias` | `[E, out]` | bf16 |
//!
//! The weights lie as `[out, in]`, unlike those of the bf16 checkpoints; gate and up rows are
//! interleaved in both. A weight is `e2m1 * 2^(scale - 127)`
//! ([OCP microscaling](https://www.opencompute.org/documents/ocp-microscaling-formats-mx-v1-0-spec-final-pdf)).
//! Activations are not quantized.

use moekit_quant::{
    CodeFormat, ExpertLinear, ExpertWeights, F8E8M0_SCALES, LinearSite, ModuleList, MoeLayerSpec,
    QuantBackend, QuantError, TensorDtype, TensorSource, load_float_linear, load_linears,
    register_quant_backend,
};
use moekit_routing::ExpertRouting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Weights under one scale.
const GROUP: usize = 32;

/// The `quantization_config` of an MXFP4 checkpoint. Keys that are not listed play no part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Mxfp4 {
    /// Modules that are not quantized: the start of a name up to a module's end (a regular
    /// expression), or its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modules_to_not_convert: Option<Vec<String>>,
}

#[typetag::serde(name = "mxfp4")]
impl QuantBackend for Mxfp4 {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let listed = self.modules_to_not_convert.iter().flatten();
        let excluded = ModuleList::to_not_convert(listed)?;
        load_linears(layer, tensors, routing, &|site, tensors| match site
            .is_excluded(tensors, &excluded)?
        {
            true => load_float_linear(site, tensors),
            false => load_mxfp4_linear(site, tensors),
        })
    }
}

register_quant_backend!(
    Mxfp4,
    name: "mxfp4",
    summary: "E2M1 blocks of 32 weights with a power of two each, as in gpt-oss",
    example: Mxfp4 {
        modules_to_not_convert: Some(vec!["model.layers.*.self_attn".to_owned()]),
    },
);

fn load_mxfp4_linear(
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    let site = site.untransposed();
    if !site.shape()[1].is_multiple_of(GROUP) {
        let what = format!("{} input features", site.shape()[1]);
        return Err(site.unsupported(&what, "a multiple of 32"));
    }
    let blocks = site.tensor("blocks");
    let codes = site.codes(tensors, &blocks, CodeFormat::F4E2M1, &[TensorDtype::U8])?;
    let name = site.tensor("scales");
    let scales = site.scales(tensors, &name, &[[1, GROUP]], F8E8M0_SCALES)?;
    site.linear(tensors, codes.with_scales(scales)?)
}
