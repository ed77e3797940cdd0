//! `quant_method = "mxfp8"`: the tensors of ModelOpt's `MXFP8` in checkpoints of MiniMax.

use moekit_quant::{
    ExpertWeights, ModuleList, MoeLayerSpec, QuantBackend, QuantError, TensorSource,
    load_float_linear, load_linears, register_quant_backend,
};
use moekit_routing::ExpertRouting;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::algorithm::Algorithm;
use crate::linear::load_quantized;

/// The `quantization_config` of an MXFP8 checkpoint. Keys that are not listed play no part.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct Mxfp8 {
    /// Modules that are not quantized: the start of a name up to a module's end (a regular
    /// expression), or its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ignored_layers: Option<Vec<String>>,
}

#[typetag::serde(name = "mxfp8")]
impl QuantBackend for Mxfp8 {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let excluded = ModuleList::to_not_convert(self.ignored_layers.iter().flatten())?;
        let algorithm = Algorithm::Mxfp8;
        load_linears(layer, tensors, routing, &|site, tensors| match site
            .is_excluded(tensors, &excluded)?
        {
            true => load_float_linear(site, tensors),
            false => load_quantized(algorithm, algorithm.group_size(), site, tensors),
        })
    }
}

register_quant_backend!(
    Mxfp8,
    name: "mxfp8",
    summary: "E4M3 weights with a power of two per group of 32",
    example: Mxfp8 {
        ignored_layers: Some(vec!["lm_head".to_owned()]),
    },
);
