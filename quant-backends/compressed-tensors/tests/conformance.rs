//! moekit's conformance suite, by storage format.

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::TensorDtype;
use moekit_quant_compressed_tensors::CompressedTensors;
use sample::Tensors;
use serde_json::{Value, json};

/// One group for all linears.
fn one_group(format: &str, weights: &Value, inputs: &Value) -> CompressedTensors {
    let config = json!({
        "format": format,
        "config_groups": {
            "group_0": {
                "targets": ["Linear"], "weights": weights, "input_activations": inputs,
            },
        },
    });
    serde_json::from_value(config).expect("a configuration")
}

fn packed(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2], bits: usize) {
    let words = [rows, (cols * bits).div_ceil(32)];
    tensors.bytes(
        format!("{module}.weight_packed"),
        TensorDtype::I32,
        &words,
        0..0xff,
    );
    tensors.sizes(format!("{module}.weight_shape"), &[rows, cols]);
}

fn nibbles(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let name = format!("{module}.weight_packed");
    tensors.bytes(name, TensorDtype::U8, &[rows, cols / 2], 0..0xff);
}

fn fp8_codes(tensors: &mut Tensors, module: &str, shape: [usize; 2]) {
    tensors.bytes(
        format!("{module}.weight"),
        TensorDtype::F8E4M3,
        &shape,
        0..0x7f,
    );
}

fn scales(tensors: &mut Tensors, module: &str, shape: &[usize]) {
    tensors.floats(format!("{module}.weight_scale"), TensorDtype::BF16, shape);
}

fn powers(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let name = format!("{module}.weight_scale");
    tensors.bytes(name, TensorDtype::U8, &[rows, cols / 32], 120..130);
}

mod int4_groups {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "pack-quantized",
            &json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 }),
            &Value::Null,
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            packed(tensors, module, [rows, cols], 4);
            scales(tensors, module, &[rows, cols / 32]);
        }).with_optional("weight_shape"),
    }
}

mod int4_groups_with_zero_points {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "pack-quantized",
            &json!({ "num_bits": 4, "type": "int", "group_size": 32, "symmetric": false }),
            &Value::Null,
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            packed(tensors, module, [rows, cols], 4);
            scales(tensors, module, &[rows, cols / 32]);
            let (name, words) = (format!("{module}.weight_zero_point"), [rows / 8, cols / 32]);
            tensors.bytes(name, TensorDtype::I32, &words, 0..0xff);
        }).with_optional("weight_shape"),
    }
}

mod int8_channels {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "pack-quantized",
            &json!({ "num_bits": 8, "type": "int", "strategy": "channel" }),
            &Value::Null,
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            packed(tensors, module, [rows, cols], 8);
            scales(tensors, module, &[rows, 1]);
        }).with_optional("weight_shape"),
    }
}

mod int8_activations {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "int-quantized",
            &json!({ "num_bits": 8, "type": "int", "strategy": "channel", "symmetric": false }),
            &json!({ "num_bits": 8, "type": "int", "strategy": "token", "dynamic": true }),
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            tensors.bytes(format!("{module}.weight"), TensorDtype::I8, &[rows, cols], 0..0xff);
            scales(tensors, module, &[rows, 1]);
            let zero_points = format!("{module}.weight_zero_point");
            tensors.bytes(zero_points, TensorDtype::I8, &[rows, 1], 0..0xff);
        }),
    }
}

mod fp8_tensors {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "float-quantized",
            &json!({ "num_bits": 8, "type": "float", "strategy": "tensor" }),
            &json!({ "num_bits": 8, "type": "float", "strategy": "tensor" }),
        ),
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            scales(tensors, module, &[1]);
            tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[1]);
        }),
    }
}

/// FP8 weights alone are not packed integers.
mod fp8_channels_weight_only {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "naive-quantized",
            &json!({ "num_bits": 8, "type": "float", "strategy": "channel" }),
            &Value::Null,
        ),
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            scales(tensors, module, &[shape[0], 1]);
        }),
    }
}

mod fp8_blocks {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "float-quantized",
            &json!({
                "num_bits": 8, "type": "float", "strategy": "block", "block_structure": "40x64",
            }),
            &json!({
                "num_bits": 8, "type": "float", "strategy": "group", "group_size": 64,
                "dynamic": true,
            }),
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            fp8_codes(tensors, module, [rows, cols]);
            scales(tensors, module, &[rows.div_ceil(40), cols.div_ceil(64)]);
        }),
    }
}

mod nvfp4 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "nvfp4-pack-quantized",
            &json!({
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
            }),
            &json!({
                "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
                "dynamic": "local",
            }),
        ),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            nibbles(tensors, module, [rows, cols]);
            let name = format!("{module}.weight_scale");
            tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols / 16], 0x20..0x50);
            tensors.floats(format!("{module}.weight_global_scale"), TensorDtype::F32, &[1]);
            tensors.floats(format!("{module}.input_global_scale"), TensorDtype::F32, &[1]);
        }),
    }
}

mod mxfp4 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "mxfp4-pack-quantized",
            &json!({ "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32 }),
            &Value::Null,
        ),
        sample: sample::per_expert(|tensors, module, shape| {
            nibbles(tensors, module, shape);
            powers(tensors, module, shape);
        }),
    }
}

mod mxfp8 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: one_group(
            "mxfp8-quantized",
            &json!({
                "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32,
                "scale_dtype": "torch.uint8",
            }),
            &json!({
                "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32,
                "scale_dtype": "torch.uint8", "dynamic": true,
            }),
        ),
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            powers(tensors, module, shape);
        }),
    }
}

/// A format of its own for each of three experts, the fourth left alone.
mod mixed {
    use super::*;

    fn mixed() -> CompressedTensors {
        let four = json!({ "num_bits": 4, "type": "int", "group_size": 32 });
        let fp8 = json!({ "num_bits": 8, "type": "float", "strategy": "channel" });
        let mxfp4 = json!({ "num_bits": 4, "type": "float", "group_size": 32 });
        let config = json!({
            "format": "mixed-precision",
            "ignore": ["re:.*experts\\.3\\..*"],
            "config_groups": {
                "a": { "targets": ["Linear"], "weights": four, "format": "pack-quantized" },
                "b": { "targets": ["re:.*experts\\.1\\."], "weights": fp8 },
                "c": {
                    "targets": ["layers.0.experts.2.up_proj"],
                    "weights": mxfp4, "format": "mxfp4-pack-quantized",
                },
            },
        });
        serde_json::from_value(config).expect("a configuration")
    }

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_compressed_tensors,
        backend: mixed(),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            if module == "layers.0.experts.2.up_proj" {
                nibbles(tensors, module, [rows, cols]);
                powers(tensors, module, [rows, cols]);
            } else if module.contains("experts.1.") {
                fp8_codes(tensors, module, [rows, cols]);
                scales(tensors, module, &[rows, 1]);
            } else if module.contains("experts.3.") {
                tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &[rows, cols]);
            } else {
                packed(tensors, module, [rows, cols], 4);
                scales(tensors, module, &[rows, cols / 32]);
            }
        }).with_optional("weight_shape"),
    }
}
