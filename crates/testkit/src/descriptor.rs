//! What holds of every plugin's descriptor.

use moekit_placement::plugin::{Descriptor, Registry};
use serde_json::Value;

/// Whether kind and name are those of the plugin and every text is one line.
pub(crate) fn is_complete(descriptor: &Descriptor, kind: &str, name: &str) -> Result<(), String> {
    for (what, got, expected) in [
        ("kind", descriptor.kind, kind),
        ("name", descriptor.name, name),
    ] {
        if got != expected {
            return Err(format!(
                "the descriptor's {what} is `{got}`, the plugin's `{expected}`"
            ));
        }
    }
    for (what, text) in [
        ("summary", descriptor.summary),
        ("crate_name", descriptor.crate_name),
        ("crate_version", descriptor.crate_version),
    ] {
        if text.trim().is_empty() || text.contains('\n') {
            return Err(format!(
                "the descriptor's {what} is `{text}`, expected one line"
            ));
        }
    }
    Ok(())
}

/// Whether the registry finds this descriptor by its name.
pub(crate) fn is_found(descriptor: &'static Descriptor, registry: &Registry) -> Result<(), String> {
    let found = registry
        .get(descriptor.name)
        .map_err(|error| error.to_string())?;
    if std::ptr::eq(found, descriptor) {
        Ok(())
    } else {
        Err(format!("the registry finds another descriptor: {found:?}"))
    }
}

/// Whether the schema is an object and describes every setting of the example but the plugin's
/// name, which is under `tag`.
pub(crate) fn schema_knows_example(descriptor: &Descriptor, tag: &str) -> Result<(), String> {
    let (schema, example) = ((descriptor.schema)(), (descriptor.example)());
    if !schema.is_object() {
        return Err(format!("the schema is {schema}, expected an object"));
    }
    let settings = example
        .as_object()
        .into_iter()
        .flat_map(|settings| settings.keys());
    for setting in settings.filter(|key| *key != tag) {
        if !names_property(&schema, setting) {
            return Err(format!(
                "the schema {schema} lacks the example's setting `{setting}`"
            ));
        }
    }
    Ok(())
}

/// Whether a property of that name is described anywhere in the schema: at its top, or in one of
/// several variants.
fn names_property(schema: &Value, name: &str) -> bool {
    match schema {
        Value::Object(entries) => {
            let properties = entries.get("properties");
            properties.is_some_and(|all| all.get(name).is_some())
                || entries.values().any(|value| names_property(value, name))
        }
        Value::Array(items) => items.iter().any(|item| names_property(item, name)),
        _ => false,
    }
}
