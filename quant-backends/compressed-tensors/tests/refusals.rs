//! What a compressed-tensors checkpoint may not say, and what its numbers are where engines go
//! wrong.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{ActivationFormat, ActivationQuant, CodeFormat, MemorySource, TensorDtype};
use moekit_quant_compressed_tensors as _;
use sample::{Tensors, experts, load, refusal};
use serde_json::{Value, json};

const UP: &str = "layers.0.experts.2.up_proj";

fn config(format: &str, weights: &Value, inputs: &Value) -> Value {
    json!({
        "quant_method": "compressed-tensors", "format": format,
        "config_groups": {
            "group_0": { "targets": ["Linear"], "weights": weights, "input_activations": inputs },
        },
    })
}

fn int4() -> Value {
    let weights = json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 });
    config("pack-quantized", &weights, &Value::Null)
}

fn int4_linear(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let name = format!("{module}.weight_packed");
    tensors.bytes(name, TensorDtype::I32, &[rows, cols / 8], 0..0xff);
    tensors.floats(
        format!("{module}.weight_scale"),
        TensorDtype::BF16,
        &[rows, cols / 32],
    );
    tensors.sizes(format!("{module}.weight_shape"), &[rows, cols]);
}

fn nvfp4_linear(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    let name = format!("{module}.weight_packed");
    tensors.bytes(name, TensorDtype::U8, &[rows, cols / 2], 0..0xff);
    let name = format!("{module}.weight_scale");
    tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols / 16], 0x20..0x50);
    tensors.floats(
        format!("{module}.weight_global_scale"),
        TensorDtype::F32,
        &[1],
    );
}

fn nvfp4() -> Value {
    let weights = json!({ "num_bits": 4, "type": "float", "group_size": 16 });
    config("nvfp4-pack-quantized", &weights, &Value::Null)
}

/// Engines use the gate's global scale for up as well.
#[test]
fn gate_and_up_keep_their_own_global_scale() {
    let weights = load(&nvfp4(), &experts(nvfp4_linear)).unwrap();
    for expert in &weights.experts {
        let gate = expert.gate.as_ref().unwrap().weight.global_scale();
        assert_ne!(gate, expert.up.weight.global_scale());
    }
}

#[test]
fn scales_that_cannot_be_right_are_named() {
    for value in [0.0, f32::NAN, -3.0] {
        let error = refusal(&nvfp4(), nvfp4_linear, |t| {
            let bytes = value.to_le_bytes().to_vec();
            t.insert(
                format!("{UP}.weight_global_scale"),
                TensorDtype::F32,
                [1],
                bytes,
            );
        });
        assert!(
            error.contains("positive and finite") && error.contains(UP),
            "{error}"
        );
    }
    // What the weights are divided by must not make them infinite.
    let error = refusal(&nvfp4(), nvfp4_linear, |t| {
        let bytes = 1e-41_f32.to_le_bytes().to_vec();
        t.insert(
            format!("{UP}.weight_global_scale"),
            TensorDtype::F32,
            [1],
            bytes,
        );
    });
    assert!(error.contains("its reciprocal must be finite"), "{error}");
    for (bits, value) in [(0x7fc0_u16, "NaN"), (0, "0")] {
        let error = refusal(&int4(), int4_linear, |t| {
            let bytes: Vec<u8> = [bits; 64 * 3]
                .iter()
                .flat_map(|b| b.to_le_bytes())
                .collect();
            t.insert(
                format!("{UP}.weight_scale"),
                TensorDtype::BF16,
                [64, 3],
                bytes,
            );
        });
        assert!(
            error.contains(&format!("scale {value} at [0, 0]")),
            "{error}"
        );
    }
}

#[test]
fn packed_lengths_must_fit_the_shape() {
    let error = refusal(&int4(), int4_linear, |t| {
        t.insert(
            format!("{UP}.weight_packed"),
            TensorDtype::I32,
            [64, 11],
            vec![0; 64 * 44],
        );
    });
    assert!(
        error.contains("has shape [64, 11], expected [64, 12]"),
        "{error}"
    );
    for shape in [[64_i64, 90], [96, 64], [-64, 96]] {
        let error = refusal(&int4(), int4_linear, |t: &mut MemorySource| {
            let bytes: Vec<u8> = shape.iter().flat_map(|n| n.to_le_bytes()).collect();
            t.insert(format!("{UP}.weight_shape"), TensorDtype::I64, [2], bytes);
        });
        assert!(
            error.contains(&format!("`{UP}.weight_shape` holds")),
            "{error}"
        );
        assert!(error.contains("expected [64, 96]"), "{error}");
    }
}

#[test]
fn stored_reorderings_are_refused() {
    let error = refusal(&int4(), int4_linear, |t| {
        t.insert(
            format!("{UP}.weight_g_idx"),
            TensorDtype::I32,
            [96],
            vec![0; 96 * 4],
        );
    });
    assert!(error.contains("weight_g_idx"), "{error}");
    for order in [json!("group"), json!("dynamic"), json!(true)] {
        let mut config = int4();
        config["config_groups"]["group_0"]["weights"]["actorder"] = order;
        let error = refusal(&config, int4_linear, |_| {});
        assert!(error.contains("actorder"), "{error}");
    }
    for order in [json!("weight"), json!("static"), json!(false), Value::Null] {
        let mut config = int4();
        config["config_groups"]["group_0"]["weights"]["actorder"] = order;
        assert!(load(&config, &experts(int4_linear)).is_ok());
    }
}

#[test]
fn configurations_that_cannot_be_are_told() {
    let with = |pointer: &str, key: &str, value: Value| {
        let mut config = int4();
        config.pointer_mut(pointer).unwrap()[key] = value;
        config
    };
    let group = "/config_groups/group_0";
    let weights = |key: &str, value: Value| with(&format!("{group}/weights"), key, value);
    let top = |key: &str, value: Value| with("", key, value);
    let inputs = |args: Value| with(group, "input_activations", args);
    let cases = [
        (weights("num_bits", json!(3)), "weights of 3 bits"),
        (weights("type", json!("float")), "type `float`"),
        (
            weights("strategy", json!("attn_head")),
            "strategy `attn_head`",
        ),
        (
            weights("group_size", json!(0)),
            "expected a positive number",
        ),
        (weights("dynamic", json!(true)), "weights are dynamic"),
        (weights("num_bits", json!("four")), "invalid type"),
        (top("format", json!("marlin-24")), "format `marlin-24`"),
        (
            top("quantization_status", json!("frozen")),
            "quantization_status `frozen`",
        ),
        (
            top("sparsity_config", json!({ "format": "sparse-24-bitmask" })),
            "sparse-24-bitmask",
        ),
        (
            top("transform_config", json!({ "config_groups": { "u": {} } })),
            "transform_config",
        ),
        (top("ignore", json!(["re:("])), "pattern"),
        (
            inputs(json!({ "num_bits": 6, "type": "float" })),
            "activations of 6 bits",
        ),
        (
            inputs(json!({ "num_bits": 8, "symmetric": false })),
            "supported: symmetric",
        ),
        (
            inputs(json!({ "num_bits": 8, "dynamic": "local" })),
            "dynamic",
        ),
    ];
    for (config, expected) in cases {
        let error = refusal(&config, int4_linear, |_| {});
        assert!(error.contains(expected), "{config}: {error}");
    }
}

#[test]
fn empty_sections_mean_nothing() {
    let mut config = int4();
    config["ignore"] = Value::Null;
    config["sparsity_config"] = json!({});
    config["transform_config"] = json!({ "config_groups": {} });
    config["quantization_status"] = json!("compressed");
    config["kv_cache_scheme"] = Value::Null;
    assert!(load(&config, &experts(int4_linear)).is_ok());
}

/// An expert of each layer may be left out by name or by a regular expression.
#[test]
fn ignored_linears_are_floats() {
    let floats = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| match module
        .starts_with("layers.0.experts.1.")
    {
        true => tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &shape),
        false => int4_linear(tensors, module, shape),
    };
    let names = ["gate_proj", "up_proj", "down_proj"].map(|n| format!("layers.0.experts.1.{n}"));
    for ignore in [
        json!(names),
        json!(["re:.*experts\\.1\\..*"]),
        json!(["re:layers\\.0\\.experts\\.(?!0|2|3)"]),
    ] {
        let mut config = int4();
        config["ignore"] = ignore;
        let weights = load(&config, &experts(floats)).unwrap();
        assert_eq!(weights.experts[1].up.weight.format(), CodeFormat::BF16);
        assert_eq!(weights.experts[0].up.weight.format(), CodeFormat::I4Offset);
    }
    // From the start of the name, and the whole of it.
    for ignore in [
        json!(["re:experts\\.1"]),
        json!(["layers.0.experts.1"]),
        json!([]),
    ] {
        let mut config = int4();
        config["ignore"] = ignore;
        assert!(load(&config, &experts(floats)).is_err());
    }
    // Ignored, yet packed.
    let mut config = int4();
    config["ignore"] = json!(["Linear"]);
    let error = load(&config, &experts(int4_linear))
        .unwrap_err()
        .to_string();
    assert!(error.contains("gate_proj.weight` is missing"), "{error}");
}

/// The storage format follows from the numbers where nobody names it.
#[test]
fn formats_are_inferred() {
    for (mut config, linear) in [
        (int4(), int4_linear as fn(&mut Tensors, &str, [usize; 2])),
        (nvfp4(), nvfp4_linear),
    ] {
        let named = load(&config, &experts(linear)).unwrap();
        config.as_object_mut().unwrap().remove("format");
        let inferred = load(&config, &experts(linear)).unwrap();
        let format = |weights: &moekit_quant::ExpertWeights| weights.experts[0].up.weight.format();
        assert_eq!(format(&named), format(&inferred));
    }
}

/// No expert's output is ever quantized; groups of other linears may say so.
#[test]
fn quantized_outputs_are_refused() {
    let outputs = json!({ "num_bits": 8, "type": "float", "dynamic": false });
    let mut config = int4();
    config["config_groups"]["group_1"] =
        json!({ "targets": ["re:.*k_proj"], "output_activations": outputs });
    assert!(load(&config, &experts(int4_linear)).is_ok());
    config["config_groups"]["group_0"]["output_activations"] = outputs;
    let error = refusal(&config, int4_linear, |_| {});
    assert!(
        error.contains("`output_activations`") && error.contains("gate_proj"),
        "{error}"
    );
}

#[test]
fn activations_follow_the_group() {
    let mut config = int4();
    let inputs = &mut config["config_groups"]["group_0"]["input_activations"];
    *inputs = json!({ "num_bits": 8, "type": "float", "strategy": "token", "dynamic": true });
    let weights = load(&config, &experts(int4_linear)).unwrap();
    let expected = ActivationQuant::PerToken {
        format: ActivationFormat::F8E4M3,
    };
    assert_eq!(weights.experts[0].up.input_quant, Some(expected));
    let mut config = nvfp4();
    let inputs = &mut config["config_groups"]["group_0"]["input_activations"];
    *inputs = json!({ "num_bits": 4, "type": "float", "group_size": 16, "dynamic": "local" });
    let error = refusal(&config, nvfp4_linear, |_| {});
    assert!(error.contains("input_global_scale` is missing"), "{error}");
    let with_input = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| {
        nvfp4_linear(tensors, module, shape);
        tensors.floats(
            format!("{module}.input_global_scale"),
            TensorDtype::F32,
            &[1],
        );
    };
    let weights = load(&config, &experts(with_input)).unwrap();
    assert!(matches!(
        weights.experts[0].up.input_quant,
        Some(ActivationQuant::Nvfp4 { .. })
    ));
}
