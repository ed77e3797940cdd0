//! Choices by the bytes of an input.

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

/// One of some values.
pub(crate) fn pick<T: Clone>(u: &mut Unstructured<'_>, values: &[T]) -> Result<T> {
    u.choose(values).cloned()
}

/// A size: small, and often a multiple of what formats have in groups.
pub(crate) fn size(u: &mut Unstructured<'_>) -> Result<usize> {
    let sizes = [1, 2, 3, 5, 7, 8, 16, 31, 32, 32, 33, 48, 64, 64, 72];
    pick(u, &sizes)
}

/// A number as it may stand in a configuration: mostly a plausible one.
pub(crate) fn number(u: &mut Unstructured<'_>, plausible: &[i64]) -> Result<Value> {
    match u.int_in_range(0..=9)? {
        0 => Ok(json!(u.arbitrary::<i64>()?)),
        1 => Ok(json!(u.arbitrary::<f64>()?)),
        2 => Ok(Value::Null),
        _ => Ok(json!(pick(u, plausible)?)),
    }
}

/// A text as it may stand in a configuration: mostly one of those known.
pub(crate) fn text(u: &mut Unstructured<'_>, known: &[&str]) -> Result<Value> {
    match u.int_in_range(0..=15)? {
        0 => Ok(json!(u.arbitrary::<&str>()?)),
        1 => Ok(Value::Null),
        _ => Ok(json!(pick(u, known)?)),
    }
}

/// Some of the entries that lists of modules have.
pub(crate) fn modules(u: &mut Unstructured<'_>) -> Result<Value> {
    let known = [
        "layers.0",
        "layers.0.experts",
        "layers.0.experts.1.up_proj",
        "experts.gate_up_proj",
        "*.experts.*",
        "*down_proj",
        "re:.*gate_proj$",
        "re:.*\\.1\\..*",
        "re:layers\\.\\d+\\.shared",
        "Linear",
        "[",
        "re:(",
    ];
    let count = u.int_in_range(0..=3)?;
    (0..count).map(|_| text(u, &known)).collect()
}
