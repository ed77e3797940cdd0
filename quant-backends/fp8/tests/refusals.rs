//! What an FP8 checkpoint may not say, and what its numbers are where engines go wrong.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{ActivationFormat, ActivationQuant, CodeFormat, MemorySource, TensorDtype};
use moekit_quant_fp8 as _;
use sample::{HIDDEN, INTERMEDIATE, Tensors, experts, load, refusal};
use serde_json::{Value, json};

const UP: &str = "layers.0.experts.2.up_proj";

fn blocks() -> Value {
    json!({ "quant_method": "fp8", "weight_block_size": [32, 32], "activation_scheme": "dynamic" })
}

fn block_linear(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let name = format!("{module}.weight");
    tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols], 1..0x7f);
    let name = format!("{module}.weight_scale_inv");
    tensors.floats(name, TensorDtype::F32, &[rows / 32, cols / 32]);
}

fn scales(tensors: &mut MemorySource, values: [f32; 6]) {
    let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    tensors.insert(
        format!("{UP}.weight_scale_inv"),
        TensorDtype::F32,
        [2, 3],
        bytes,
    );
}

#[test]
fn scales_that_cannot_be_right_are_named() {
    for (value, reason) in [
        (f32::NAN, "scale NaN at [1, 0] of `"),
        (f32::INFINITY, "scale inf at [1, 0] of `"),
        (0.0, "scale 0 at [1, 0] of `"),
    ] {
        let change = |tensors: &mut MemorySource| {
            scales(tensors, [1.0, 1.0, 1.0, value, 1.0, 1.0]);
        };
        let error = refusal(&blocks(), block_linear, change);
        assert!(error.starts_with(reason) && error.contains(UP), "{error}");
    }
}

/// A scale of 0 is right where all codes are 0.
#[test]
fn blocks_of_zeros_may_have_no_scale() {
    let mut sample = experts(block_linear);
    scales(&mut sample.1, [0.0; 6]);
    let zeros = vec![0_u8; INTERMEDIATE * HIDDEN];
    sample.1.insert(
        format!("{UP}.weight"),
        TensorDtype::F8E4M3,
        [INTERMEDIATE, HIDDEN],
        zeros,
    );
    assert!(load(&blocks(), &sample).is_ok());
}

#[test]
fn wrong_tensors_are_named() {
    let error = refusal(&blocks(), block_linear, |t| {
        t.remove(&format!("{UP}.weight_scale_inv"));
    });
    assert!(
        error.contains(&format!("tensor `{UP}.weight_scale_inv` is missing")),
        "{error}"
    );
    let error = refusal(&blocks(), block_linear, |t| {
        t.insert(
            format!("{UP}.weight"),
            TensorDtype::F8E5M2,
            [INTERMEDIATE, HIDDEN],
            vec![],
        );
    });
    assert!(error.contains("is f8_e5m2, expected f8_e4m3"), "{error}");
    let error = refusal(&blocks(), block_linear, |t| {
        t.insert(
            format!("{UP}.weight"),
            TensorDtype::F8E4M3,
            [HIDDEN, INTERMEDIATE],
            vec![],
        );
    });
    assert!(
        error.contains("has shape [96, 64], expected [64, 96]"),
        "{error}"
    );
}

/// A tensor that the configuration does not leave out has to be quantized.
#[test]
fn floats_are_read_where_the_configuration_leaves_them_out() {
    let floats = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| match module == UP {
        true => tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &shape),
        false => block_linear(tensors, module, shape),
    };
    let error = refusal(&blocks(), floats, |_| {});
    assert!(error.contains("is bf16, expected f8_e4m3"), "{error}");
    for list in ["modules_to_not_convert", "ignored_layers"] {
        for entry in [UP, "layers.0.experts.2", "layers.*.up_proj", "2.up_proj"] {
            let mut config = blocks();
            config[list] = json!(["lm_head", entry]);
            let weights = load(&config, &experts(floats)).unwrap();
            assert_eq!(
                weights.experts[2].up.weight.format(),
                CodeFormat::BF16,
                "{entry}"
            );
            // An entry that names more than was left out does not change what is stored.
            assert_eq!(
                weights.experts[2].down.weight.format(),
                CodeFormat::F8E4M3,
                "{entry}"
            );
            assert_eq!(
                weights.experts[1].up.weight.format(),
                CodeFormat::F8E4M3,
                "{entry}"
            );
        }
        let mut config = blocks();
        config[list] = json!(["layers.0.experts.2.up"]);
        assert!(load(&config, &experts(floats)).is_err());
    }
}

#[test]
fn configurations_that_cannot_be_are_told() {
    let error = |key: &str, value: Value| {
        let mut config = blocks();
        config[key] = value;
        refusal(&config, block_linear, |_| {})
    };
    let cases = [
        ("fmt", json!("e5m2"), "fmt `e5m2`"),
        ("scale_fmt", json!("int"), "supported: float, ue8m0"),
        ("store_dtype", json!("mxfp4"), "store_dtype `mxfp4`"),
        ("expert_dtype", json!("fp4"), "expert_dtype `fp4`"),
        ("activation_scheme", json!("static"), "expected \"dynamic\""),
        ("activation_scheme", json!("none"), "unknown variant `none`"),
        ("weight_block_size", json!([0, 128]), "[0, 128]"),
        ("weight_block_size", json!([128]), "invalid length 1"),
        ("weight_block_size", json!([-1, 128]), "invalid value"),
        ("modules_to_not_convert", json!(["a("]), "pattern"),
    ];
    for (key, value, expected) in cases {
        let error = error(key, value);
        assert!(error.contains(expected), "{key}: {error}");
    }
}

/// One scale per row stays one per row, and no two scales are merged.
#[test]
fn channels_are_not_read_as_one_scale() {
    let config = json!({ "quant_method": "fp8" });
    let sample = experts(|tensors, module, [rows, cols]| {
        let name = format!("{module}.weight");
        tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols], 0x38..0x39);
        tensors.floats(
            format!("{module}.weight_scale"),
            TensorDtype::F32,
            &[rows, 1],
        );
    });
    let weights = load(&config, &sample).unwrap();
    let up = &weights.experts[0].up;
    assert_eq!(
        up.input_quant,
        Some(ActivationQuant::PerToken {
            format: ActivationFormat::F8E4M3
        })
    );
    let mut rows = [[0.0; HIDDEN]; 2];
    for (r, row) in rows.iter_mut().enumerate() {
        up.weight.dequantize_row(r, row).unwrap();
        assert_eq!(row[0], up.weight.scales().unwrap().at(r, 5).unwrap());
    }
    assert_ne!(rows[0], rows[1]);
}

/// A configuration with `scale_fmt` `ue8m0` rounds dynamic scales to powers of two as well.
#[test]
fn activations_follow_the_scheme() {
    let mut config = blocks();
    config["weight_block_size"] = json!([32, 16]);
    config["scale_fmt"] = json!("ue8m0");
    let sample = experts(|tensors, module, [rows, cols]| {
        let name = format!("{module}.weight");
        tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols], 0..0x7f);
        let (name, grid) = (format!("{module}.weight_scale_inv"), [rows / 32, cols / 16]);
        tensors.bytes(name, TensorDtype::F8E8M0, &grid, 120..130);
    });
    let weights = load(&config, &sample).unwrap();
    let expected = ActivationQuant::PerGroup {
        format: ActivationFormat::F8E4M3,
        group_size: 16,
        power_of_two: true,
    };
    assert_eq!(weights.experts[3].down.input_quant, Some(expected));
}
