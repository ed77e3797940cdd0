//! What an MXFP4 checkpoint may not say.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{CodeFormat, TensorDtype};
use moekit_quant_mxfp4 as _;
use sample::{Tensors, experts, load, refusal};
use serde_json::{Value, json};

const UP: &str = "layers.0.experts.2.up_proj";

fn mxfp4() -> Value {
    json!({ "quant_method": "mxfp4" })
}

fn linear(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let blocks = [rows, cols / 32, 16];
    tensors.bytes(
        format!("{module}.blocks"),
        TensorDtype::U8,
        &blocks,
        0..0xff,
    );
    tensors.bytes(
        format!("{module}.scales"),
        TensorDtype::U8,
        &blocks[..2],
        120..130,
    );
}

#[test]
fn wrong_tensors_are_named() {
    let error = refusal(&mxfp4(), linear, |t| {
        t.insert(
            format!("{UP}.scales"),
            TensorDtype::U8,
            [64, 3],
            vec![255; 64 * 3],
        );
    });
    assert!(
        error.contains(&format!("scale NaN at [0, 0] of `{UP}.scales`")),
        "{error}"
    );
    let error = refusal(&mxfp4(), linear, |t| {
        t.insert(
            format!("{UP}.blocks"),
            TensorDtype::U8,
            [64, 3, 15],
            vec![0; 64 * 45],
        );
    });
    assert!(
        error.contains("has shape [64, 3, 15], expected [64, 48]"),
        "{error}"
    );
    let error = refusal(&mxfp4(), linear, |t| {
        t.remove(&format!("{UP}.scales"));
    });
    assert!(error.contains("is missing"), "{error}");
}

#[test]
fn excluded_linears_are_floats() {
    let floats = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| match module == UP {
        true => tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &shape),
        false => linear(tensors, module, shape),
    };
    assert!(load(&mxfp4(), &experts(floats)).is_err());
    let mut config = mxfp4();
    config["modules_to_not_convert"] = json!(["model.layers.*.self_attn", "layers.*.up_proj"]);
    let weights = load(&config, &experts(floats)).unwrap();
    assert_eq!(weights.experts[2].up.weight.format(), CodeFormat::BF16);
    assert_eq!(weights.experts[1].up.weight.format(), CodeFormat::F4E2M1);
}
