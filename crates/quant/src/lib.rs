//! Quantization backends and the canonical form of packed experts.
//!
//! A model family says where the experts of a layer are ([`MoeLayerSpec`]), a checkpoint gives out
//! bytes ([`TensorSource`]), a [`QuantBackend`] turns the bytes of its format into
//! [`ExpertWeights`]: still in the checkpoint's precision, still in the mapped file where the layout
//! allows. Kernels and the layer know [`ExpertWeights`] and nothing of checkpoint formats.

mod activation_quant;
mod backend;
mod error;
mod expert;
mod formats;
mod load;
mod matrix;
mod pattern;
mod scale;
mod site;
mod source;
mod spec;

pub use moekit_plugin as plugin;

pub use activation_quant::{ActivationFormat, ActivationQuant};
pub use backend::{
    QUANT_BACKEND_KIND, QuantBackend, UNQUANTIZED, backend_for, linked_quant_backends,
};
pub use error::QuantError;
pub use expert::{ExpertLinear, ExpertMlp, ExpertWeights};
pub use formats::{
    CodeFormat, F4E2M1_MAX, F8E4M3_MAX, ScaleFormat, f4e2m1_values, f8e4m3_values, f8e8m0_values,
    round_f4e2m1, round_f8e4m3,
};
pub use load::load_linears;
pub use matrix::PackedMatrix;
pub use pattern::{ModuleList, ModulePattern};
pub use scale::ScaleGrid;
pub use site::{
    F8E4M3_SCALES, F8E8M0_SCALES, FLOAT_SCALES, LinearSite, Projection, check_floats,
    load_float_linear, read_floats,
};
pub use source::{
    CountingSource, MemorySource, TensorDtype, TensorInfo, TensorSource, slice_tensor,
};
pub use spec::{
    Activation, ExpertGroups, ExpertLayout, FusedOrder, FusedTensor, GroupScore, MlpNames,
    MoeLayerSpec, MoeModelSpec, RouterSpec, ScoringFunction, SharedExpertsSpec, TopKSelection,
};
