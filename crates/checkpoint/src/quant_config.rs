//! Where quantizers leave their configuration.

use serde_json::{Map, Value};

use crate::CheckpointError;
use crate::config::text_config;

/// The quantization of a checkpoint, with `quant_method`.
///
/// ModelOpt writes `hf_quant_config.json` (`{"producer": .., "quantization": ..}`) and, in newer
/// versions, the same into `config.json`. What `config.json` says wins; the file adds what is not
/// there.
pub(crate) fn merge(
    config: &Value,
    separate: Option<Value>,
) -> Result<Option<Value>, CheckpointError> {
    let nested = text_config(config).and_then(|text| text.get("quantization_config"));
    let inline = config
        .get("quantization_config")
        .filter(|value| !value.is_null())
        .or_else(|| nested.filter(|value| !value.is_null()));
    let mut merged = match inline {
        None => Map::new(),
        Some(Value::Object(map)) => map.clone(),
        Some(other) => return Err(not_an_object("quantization_config", other)),
    };
    if let Some(separate) = separate {
        let Some(quantization) = separate.get("quantization").and_then(Value::as_object) else {
            return Err(not_an_object(
                "quantization of hf_quant_config.json",
                &separate,
            ));
        };
        for (key, value) in quantization {
            merged.entry(key.clone()).or_insert_with(|| value.clone());
        }
        if let Some(producer) = separate.get("producer") {
            merged.entry("producer").or_insert_with(|| producer.clone());
        }
        merged
            .entry("quant_method")
            .or_insert_with(|| "modelopt".into());
    }
    if merged.is_empty() {
        return Ok(None);
    }
    Ok(Some(Value::Object(merged)))
}

fn not_an_object(key: &str, got: &Value) -> CheckpointError {
    let mut got = got.to_string();
    got.truncate(got.char_indices().nth(60).map_or(got.len(), |(at, _)| at));
    CheckpointError::Config {
        key: key.to_owned(),
        got,
        expected: "an object".to_owned(),
    }
}
