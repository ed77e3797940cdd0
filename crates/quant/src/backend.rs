use std::fmt::Debug;

use moekit_plugin::Registry;
use moekit_routing::ExpertRouting;
use serde_json::Value;

use crate::spec::MoeLayerSpec;
use crate::{ExpertWeights, QuantError, TensorSource};

/// The kind under which quantization backends register.
pub const QUANT_BACKEND_KIND: &str = "quantization backend";

/// The backend of checkpoints without `quantization_config`.
pub const UNQUANTIZED: &str = "unquantized";

/// Turns the tensors of one checkpoint format into packed experts.
///
/// A backend *is* the checkpoint's `quantization_config`: a plain serde struct, chosen by
/// `quant_method`. It knows of the layer only what [`ExpertRouting`] tells, and nothing of
/// strategies or kernels. Register it with
/// [`register_quant_backend!`](crate::register_quant_backend).
#[typetag::serde(tag = "quant_method")]
pub trait QuantBackend: Debug + Send + Sync {
    /// Loads the experts that this rank holds, in order of its local slots. Only their bytes are
    /// read; [`load_linears`](crate::load_linears) does all but the format.
    ///
    /// # Errors
    ///
    /// If a tensor is missing or is not what the format says, or the configuration asks for
    /// something that the backend cannot do.
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError>;
}

impl dyn QuantBackend + '_ {
    /// The `quant_method` that selects the backend.
    pub fn name(&self) -> &'static str {
        self.typetag_name()
    }
}

/// The backends that this program links, by name.
///
/// # Errors
///
/// If two different backends have one name.
pub fn linked_quant_backends() -> Result<Registry, QuantError> {
    Ok(Registry::linked(QUANT_BACKEND_KIND)?)
}

/// The backend of a checkpoint.
///
/// # Arguments
///
/// - `quantization_config` - of the checkpoint's configuration, with `quant_method`; `None` selects
///   [`UNQUANTIZED`].
///
/// # Errors
///
/// If no linked backend has that name (the message lists those that are linked), or the
/// configuration is not one of that backend.
pub fn backend_for(
    quantization_config: Option<&Value>,
) -> Result<Box<dyn QuantBackend>, QuantError> {
    let unquantized = serde_json::json!({ "quant_method": UNQUANTIZED });
    let config = quantization_config.unwrap_or(&unquantized);
    let linked = linked_quant_backends()?;
    let Some(name) = config.get("quant_method").and_then(Value::as_str) else {
        let names: Vec<_> = linked.iter().map(|descriptor| descriptor.name).collect();
        return Err(QuantError::QuantMethod {
            got: config.get("quant_method").cloned(),
            linked: names,
        });
    };
    // Asked before typetag, whose own error for an unknown tag does not know about linking.
    linked.get(name)?;
    serde_json::from_value(config.clone()).map_err(|error| QuantError::Config {
        method: name.to_owned(),
        message: error.to_string(),
    })
}

/// Registers a quantization backend: writes the `pub static DESCRIPTOR` of this module and submits
/// it.
///
/// The type implements [`QuantBackend`] under `#[typetag::serde(name = "...")]` with the same name
/// and derives `schemars::JsonSchema`. One module registers one backend.
#[macro_export]
macro_rules! register_quant_backend {
    ($type:ty, name: $name:literal, summary: $summary:literal, example: $example:expr $(,)?) => {
        /// What this quantization backend says of itself.
        pub static DESCRIPTOR: $crate::plugin::Descriptor = $crate::plugin::Descriptor {
            kind: $crate::QUANT_BACKEND_KIND,
            name: $name,
            summary: $summary,
            crate_name: env!("CARGO_PKG_NAME"),
            crate_version: env!("CARGO_PKG_VERSION"),
            schema: $crate::plugin::__private::schema::<$type>,
            example: || {
                let example: &dyn $crate::QuantBackend = &$example;
                $crate::plugin::__private::serde_json::to_value(example).unwrap_or_default()
            },
        };

        $crate::plugin::__private::inventory::submit! {
            $crate::plugin::__private::Registration(&DESCRIPTOR)
        }
    };
}
