use serde_json::Value;

/// Takes blocks of code out of the descriptions of a schema. They are the doc comments of the type,
/// whose examples are for those who write Rust; a schema is for those who write a configuration.
pub(crate) fn without_code(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if key == "description" => *text = prose(text),
                    _ => without_code(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(without_code),
        _ => {}
    }
}

/// The lines of a text that are in no block of code.
fn prose(text: &str) -> String {
    let mut in_code = false;
    let lines = text.lines().filter(|line| {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        !in_code && !is_fence
    });
    lines.collect::<Vec<_>>().join("\n").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn examples_go_and_prose_stays() {
        let mut schema = json!({
            "description": "A plan.\n\n```\nlet x = 1;\n```",
            "properties": {
                "description": { "description": "Before.\n```text\na\n```\nAfter.", "const": "```" },
            },
            "oneOf": [{ "description": "One `word`." }],
        });
        without_code(&mut schema);
        let expected = json!({
            "description": "A plan.",
            "properties": { "description": { "description": "Before.\nAfter.", "const": "```" } },
            "oneOf": [{ "description": "One `word`." }],
        });
        assert_eq!(schema, expected);
    }
}
