//! What a ModelOpt checkpoint may not say, and what its numbers are where engines go wrong.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{ActivationFormat, ActivationQuant, CodeFormat, MemorySource, TensorDtype};
use moekit_quant_modelopt as _;
use sample::{Tensors, experts, load, refusal};
use serde_json::{Value, json};

const UP: &str = "layers.0.experts.2.up_proj";

fn nvfp4() -> Value {
    json!({ "quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16 })
}

fn nvfp4_linear(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    tensors.bytes(
        format!("{module}.weight"),
        TensorDtype::U8,
        &[rows, cols / 2],
        0..0xff,
    );
    let name = format!("{module}.weight_scale");
    tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols / 16], 0x20..0x50);
    tensors.floats(format!("{module}.weight_scale_2"), TensorDtype::F32, &[]);
    tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[]);
}

fn scalar(tensors: &mut MemorySource, name: &str, value: f32) {
    tensors.insert(
        format!("{UP}.{name}"),
        TensorDtype::F32,
        [],
        value.to_le_bytes().to_vec(),
    );
}

/// Engines use the gate's second-level scale for up as well.
#[test]
fn gate_and_up_keep_their_own_second_level() {
    let weights = load(&nvfp4(), &experts(nvfp4_linear)).unwrap();
    for expert in &weights.experts {
        let [gate, up] = [expert.gate.as_ref().unwrap(), &expert.up];
        assert_ne!(gate.weight.global_scale(), up.weight.global_scale());
        assert!(matches!(
            up.input_quant,
            Some(ActivationQuant::Nvfp4 { .. })
        ));
        let mut row = vec![0.0; up.weight.cols()];
        for linear in [gate, up] {
            linear.weight.dequantize_row(3, &mut row).unwrap();
            let scale = linear.weight.scales().unwrap().at(3, 0).unwrap();
            let code = linear.weight.row_codes(3).unwrap()[0] & 15;
            let value = CodeFormat::F4E2M1.decode(&[code]).unwrap();
            assert_eq!(row[0], value * (scale * linear.weight.global_scale()));
        }
    }
}

#[test]
fn scales_that_cannot_be_right_are_named() {
    for (name, value) in [
        ("weight_scale_2", 0.0),
        ("weight_scale_2", f32::NAN),
        ("weight_scale_2", -1.0),
        ("input_scale", f32::INFINITY),
        ("input_scale", 0.0),
    ] {
        let error = refusal(&nvfp4(), nvfp4_linear, |t| scalar(t, name, value));
        assert!(error.contains(&format!("`{UP}.{name}`")), "{error}");
        assert!(error.contains("positive and finite"), "{error}");
    }
    let error = refusal(&nvfp4(), nvfp4_linear, |t| {
        let codes = vec![0x7f; 64 * 6];
        t.insert(
            format!("{UP}.weight_scale"),
            TensorDtype::F8E4M3,
            [64, 6],
            codes,
        );
    });
    assert!(error.contains("scale NaN at [0, 0]"), "{error}");
}

/// A block that is small beside the second level underflows to a scale of 0, and is 0.
#[test]
fn block_scales_may_underflow() {
    let mut sample = experts(nvfp4_linear);
    let zeros = vec![0; 64 * 6];
    sample.1.insert(
        format!("{UP}.weight_scale"),
        TensorDtype::F8E4M3,
        [64, 6],
        zeros,
    );
    let weights = load(&nvfp4(), &sample).unwrap();
    let mut row = vec![1.0; 96];
    weights.experts[2]
        .up
        .weight
        .dequantize_row(0, &mut row)
        .unwrap();
    assert!(row.iter().all(|w| *w == 0.0));
}

#[test]
fn packed_lengths_must_fit_the_shape() {
    for shape in [[64, 47], [64, 96], [96, 32]] {
        let error = refusal(&nvfp4(), nvfp4_linear, |t| {
            let bytes = vec![0; shape[0] * shape[1]];
            t.insert(format!("{UP}.weight"), TensorDtype::U8, shape, bytes);
        });
        assert!(error.contains("expected [64, 48]"), "{error}");
    }
}

#[test]
fn configurations_that_cannot_be_are_told() {
    let mut layers = nvfp4();
    layers["quantized_layers"] = json!({ "layers.0": { "quant_algo": "INT4_AWQ" } });
    layers["quant_algo"] = json!("mixed_precision");
    let cases = [
        (json!({}), "quant_algo is missing"),
        (
            json!({ "quant_algo": "W4A8_AWQ" }),
            "supported: FP8, FP8_PER_CHANNEL_PER_TOKEN",
        ),
        (
            json!({ "quant_algo": "MIXED_PRECISION" }),
            "quantized_layers is empty",
        ),
        (
            json!({ "quant_algo": "NVFP4", "group_size": 0 }),
            "group_size is 0",
        ),
        (
            json!({ "quant_algo": "NVFP4", "ignore": ["[z-a]*"] }),
            "pattern `",
        ),
        (layers, "quant_algo `INT4_AWQ`"),
    ];
    for (mut config, expected) in cases {
        config["quant_method"] = json!("modelopt");
        let error = refusal(&config, nvfp4_linear, |_| {});
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn weights_alone_need_no_input_scale() {
    let without = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| {
        nvfp4_linear(tensors, module, shape);
    };
    let mut sample = experts(without);
    let names: Vec<String> = sample.1.names().map(str::to_owned).collect();
    for name in names.iter().filter(|name| name.ends_with("input_scale")) {
        sample.1.remove(name);
    }
    let error = load(&nvfp4(), &sample).unwrap_err().to_string();
    assert!(error.contains("input_scale` is missing"), "{error}");
    let mut config = nvfp4();
    config["config_groups"] = json!({ "group_0": { "targets": ["Linear"], "weights": {} } });
    let weights = load(&config, &sample).unwrap();
    assert_eq!(weights.experts[0].up.input_quant, None);
}

/// `FP8` with one scale per row is read as such, `FP8_PER_CHANNEL_PER_TOKEN` as nothing else.
#[test]
fn the_shape_of_the_scales_counts() {
    let linear = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| {
        tensors.bytes(
            format!("{module}.weight"),
            TensorDtype::F8E4M3,
            &shape,
            0..0x7f,
        );
        tensors.floats(
            format!("{module}.weight_scale"),
            TensorDtype::F32,
            &[shape[0]],
        );
        tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[]);
    };
    for algorithm in ["FP8", "FP8_PER_CHANNEL_PER_TOKEN"] {
        let config = json!({ "quant_method": "modelopt", "quant_algo": algorithm });
        let weights = load(&config, &experts(linear)).unwrap();
        let scales = weights.experts[1].down.weight.scales().unwrap();
        assert_eq!((scales.shape(), scales.block()), ([96, 1], [1, 64]));
    }
    let config = json!({ "quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN" });
    let error = refusal(&config, linear, |t| scalar(t, "weight_scale", 1.0));
    assert!(error.contains("expected [64, 1]"), "{error}");
}

/// Patterns end where names end; what is stored decides where they name too much.
#[test]
fn exclusions() {
    let floats = |tensors: &mut Tensors, module: &str, shape: [usize; 2]| match module
        .starts_with("layers.0.experts.1.")
    {
        true => tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &shape),
        false => nvfp4_linear(tensors, module, shape),
    };
    for entry in [
        "layers.0.experts.1",
        "layers.0.experts.1.*",
        "layers.0.experts.1*",
        "*.experts.[01].*",
        "layers.0*",
        "layers.?",
    ] {
        for key in ["ignore", "exclude_modules"] {
            let mut config = nvfp4();
            config[key] = json!(["lm_head", entry]);
            let weights = load(&config, &experts(floats)).unwrap();
            let format = |e: usize| weights.experts[e].down.weight.format();
            assert_eq!(
                (format(0), format(1)),
                (CodeFormat::F4E2M1, CodeFormat::BF16),
                "{entry}"
            );
        }
    }
    for entry in [
        "layers.0.experts",
        "experts.1",
        "layers.0.experts.1?",
        "ayers.0",
    ] {
        let mut config = nvfp4();
        config["ignore"] = json!([entry]);
        let loaded = load(&config, &experts(floats));
        assert_eq!(loaded.is_ok(), entry == "layers.0.experts", "{entry}");
    }
}

#[test]
fn mixed_precision_looks_from_the_inside_out() {
    let config = json!({
        "quant_method": "modelopt", "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {
            "layers.0": { "quant_algo": "FP8" },
            "layers.0.experts": { "quant_algo": "NVFP4", "group_size": 16 },
            "layers.0.experts.3.up_proj": { "quant_algo": "MXFP8" },
        },
    });
    let sample = experts(|tensors, module, [rows, cols]| {
        if module == "layers.0.experts.3.up_proj" {
            let name = format!("{module}.weight");
            tensors.bytes(name, TensorDtype::F8E4M3, &[rows, cols], 0..0x7f);
            let name = format!("{module}.weight_scale");
            tensors.bytes(name, TensorDtype::U8, &[rows, cols / 32], 120..130);
        } else {
            nvfp4_linear(tensors, module, [rows, cols]);
        }
    });
    let weights = load(&config, &sample).unwrap();
    let mx = ActivationQuant::Mx {
        format: ActivationFormat::F8E4M3,
    };
    assert_eq!(weights.experts[3].up.input_quant, Some(mx));
    assert_eq!(weights.experts[3].up.weight.format(), CodeFormat::F8E4M3);
    assert_eq!(weights.experts[3].down.weight.format(), CodeFormat::F4E2M1);
    let mut left_out = config.clone();
    left_out["quantized_layers"]["layers.0.experts.2"] = json!({ "quant_algo": null });
    let error = load(&left_out, &sample).unwrap_err().to_string();
    assert!(
        error.contains("experts.2.gate_proj.weight` is u8, expected f32"),
        "{error}"
    );
    // What no entry reaches is a float; these are not.
    let mut other = config.clone();
    other["quantized_layers"] = json!({ "layers.1": { "quant_algo": "FP8" } });
    let error = load(&other, &sample).unwrap_err().to_string();
    assert!(error.contains("expected f32 or f16 or bf16"), "{error}");
}
