//! How the backend of a checkpoint is found.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use moekit_quant::{backend_for, linked_quant_backends};
use serde_json::json;

mod rows {
    use moekit_quant::{
        ExpertWeights, MoeLayerSpec, QuantBackend, QuantError, TensorSource, load_float_linear,
        load_linears, register_quant_backend,
    };
    use moekit_routing::ExpertRouting;

    #[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
    pub(crate) struct Rows {
        pub(crate) width: usize,
    }

    #[typetag::serde(name = "rows")]
    impl QuantBackend for Rows {
        fn load_experts(
            &self,
            layer: &MoeLayerSpec,
            tensors: &dyn TensorSource,
            routing: &dyn ExpertRouting,
        ) -> Result<ExpertWeights, QuantError> {
            load_linears(layer, tensors, routing, &load_float_linear)
        }
    }

    register_quant_backend!(Rows, name: "rows", summary: "An example", example: Rows { width: 4 });
}

#[test]
fn a_backend_is_its_configuration() {
    let config = json!({ "quant_method": "rows", "width": 3, "more": [1] });
    let backend = backend_for(Some(&config)).unwrap();
    assert_eq!(backend.name(), "rows");
    let written = serde_json::to_value(&backend).unwrap();
    assert_eq!(written, json!({ "quant_method": "rows", "width": 3 }));
}

#[test]
fn unknown_backends_get_help() {
    let error = backend_for(Some(&json!({ "quant_method": "row" })))
        .unwrap_err()
        .to_string();
    assert!(error.contains("did you mean `rows`?"), "{error}");
    assert!(error.contains("link_plugins!"), "{error}");
    // Nothing is linked here that reads float checkpoints.
    let error = backend_for(None).unwrap_err().to_string();
    assert!(
        error.contains("unknown quantization backend `unquantized`"),
        "{error}"
    );
}

#[test]
fn wrong_configurations_are_told() {
    let error = backend_for(Some(&json!({ "quant_method": "rows" })))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "quantization_config of `rows`: missing field `width`"
    );
    let error = backend_for(Some(&json!({ "bits": 4 })))
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "`quant_method` of quantization_config is missing, expected the name of a quantization \
         backend; linked are: rows"
    );
    for odd in [
        json!(null),
        json!([1]),
        json!("rows"),
        json!({ "quant_method": 3 }),
    ] {
        assert!(backend_for(Some(&odd)).is_err(), "{odd}");
    }
}

#[test]
fn descriptors_are_listed() {
    let registry = linked_quant_backends().unwrap();
    let descriptor = registry.get("rows").unwrap();
    assert_eq!(
        (descriptor.example)(),
        json!({ "quant_method": "rows", "width": 4 })
    );
    assert!((descriptor.schema)()["properties"]["width"].is_object());
}
