//! The configurations of each backend.

use arbitrary::{Result, Unstructured};
use serde_json::{Value, json};

use crate::loading::target;
use crate::pick::{modules, number, pick, text};

/// The loader of `unquantized`.
pub fn unquant(data: &[u8]) {
    target(data, |_| Ok(json!({ "quant_method": "unquantized" })));
}

/// The loader of `fp8`.
pub fn fp8(data: &[u8]) {
    target(data, |u| {
        let mut config = json!({ "quant_method": "fp8" });
        if u.arbitrary()? {
            let sizes = [1, 2, 3, 16, 32, 64, 128];
            config["weight_block_size"] = json!([number(u, &sizes)?, number(u, &sizes)?]);
        }
        let schemes = [
            ("activation_scheme", "dynamic"),
            ("activation_scheme", "static"),
        ];
        let keys = [
            ("scale_fmt", "ue8m0"),
            ("scale_fmt", "float"),
            ("fmt", "e4m3"),
        ];
        for known in [&schemes[..], &keys[..]] {
            if u.ratio(1, 2)? {
                let (key, value) = pick(u, known)?;
                config[key] = text(u, &[value])?;
            }
        }
        if u.ratio(1, 4)? {
            config["modules_to_not_convert"] = modules(u)?;
        }
        Ok(config)
    });
}

/// The loader of `mxfp4`.
pub fn mxfp4(data: &[u8]) {
    target(data, |u| {
        let mut config = json!({ "quant_method": "mxfp4" });
        if u.ratio(1, 4)? {
            config["modules_to_not_convert"] = modules(u)?;
        }
        Ok(config)
    });
}

const ALGORITHMS: &[&str] = &[
    "FP8",
    "FP8_PER_CHANNEL_PER_TOKEN",
    "FP8_PB_WO",
    "NVFP4",
    "W4A16_NVFP4",
    "MXFP8",
    "nvfp4",
];

/// The loaders of `modelopt` and `mxfp8`.
pub fn modelopt(data: &[u8]) {
    target(data, |u| {
        if u.ratio(1, 8)? {
            return Ok(json!({ "quant_method": "mxfp8", "ignored_layers": modules(u)? }));
        }
        let mut config = json!({ "quant_method": "modelopt" });
        config["quant_algo"] = text(u, ALGORITHMS)?;
        if u.ratio(1, 4)? {
            config["group_size"] = number(u, &[16, 32, 128, 1, 0])?;
        }
        if u.ratio(1, 4)? {
            let key = pick(u, &["ignore", "exclude_modules"])?;
            config[key] = modules(u)?;
        }
        if u.ratio(1, 8)? {
            let inputs = pick(u, &[json!(null), json!({ "num_bits": 4 })])?;
            config["config_groups"] = json!({ "group_0": { "input_activations": inputs } });
        }
        if u.ratio(1, 4)? {
            config["quant_algo"] = json!("MIXED_PRECISION");
            let holders = [
                "layers.0.experts",
                "layers.0",
                "layers.0.experts.1",
                "layers.0.experts.0.up_proj",
                "layers.0.experts.gate_up_proj",
            ];
            let mut layers = json!({});
            for _ in 0..u.int_in_range(0..=3)? {
                let format = json!({
                    "quant_algo": text(u, ALGORITHMS)?,
                    "group_size": number(u, &[16, 32, 128])?,
                });
                layers[pick(u, &holders)?] = format;
            }
            config["quantized_layers"] = layers;
        }
        Ok(config)
    });
}

/// The loader of `compressed-tensors`.
pub fn compressed(data: &[u8]) {
    target(data, |u| {
        let mut groups = json!({});
        for index in 0..u.int_in_range(1..=2)? {
            let (weights, inputs, format) = scheme(u)?;
            let mut group = json!({ "weights": weights, "input_activations": inputs });
            group["targets"] = match u.ratio(3, 4)? {
                true => json!(["Linear"]),
                false => modules(u)?,
            };
            if u.arbitrary()? {
                group["format"] = json!(format);
            }
            groups[format!("group_{index}")] = group;
        }
        let mut config = json!({ "quant_method": "compressed-tensors", "config_groups": groups });
        if u.ratio(1, 4)? {
            config["ignore"] = modules(u)?;
        }
        if u.ratio(1, 4)? {
            config["format"] = text(u, FORMATS)?;
        }
        Ok(config)
    });
}

const FORMATS: &[&str] = &[
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "dense",
    "mixed-precision",
];

/// Weights, inputs and storage format of a group: those of a published scheme, then a few keys
/// changed.
fn scheme(u: &mut Unstructured<'_>) -> Result<(Value, Value, &'static str)> {
    let token =
        |kind: &str| json!({ "num_bits": 8, "type": kind, "strategy": "token", "dynamic": true });
    let fours = json!({
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
    });
    let mut local = fours.clone();
    local["dynamic"] = json!("local");
    let published = [
        (
            json!({ "num_bits": 4, "type": "int", "strategy": "group", "group_size": 32 }),
            Value::Null,
            0,
        ),
        (
            json!({ "num_bits": 8, "type": "int", "strategy": "channel" }),
            Value::Null,
            0,
        ),
        (
            json!({ "num_bits": 4, "type": "int", "group_size": 128 }),
            token("float"),
            0,
        ),
        (
            json!({ "num_bits": 8, "type": "int", "strategy": "channel" }),
            token("int"),
            1,
        ),
        (
            json!({ "num_bits": 8, "type": "float", "strategy": "channel" }),
            token("float"),
            2,
        ),
        (
            json!({ "num_bits": 8, "type": "float", "strategy": "tensor" }),
            json!({ "num_bits": 8, "type": "float", "strategy": "tensor" }),
            2,
        ),
        (
            json!({ "num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 16] }),
            json!({ "num_bits": 8, "type": "float", "strategy": "group", "group_size": 16, "dynamic": true }),
            2,
        ),
        (fours, local, 4),
        (
            json!({ "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32 }),
            Value::Null,
            5,
        ),
        (
            json!({ "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8" }),
            json!({ "num_bits": 8, "type": "float", "group_size": 32, "dynamic": true, "scale_dtype": "torch.uint8" }),
            6,
        ),
        (Value::Null, Value::Null, 7),
    ];
    let (mut weights, mut inputs, format) = pick(u, &published)?;
    for args in [&mut weights, &mut inputs] {
        for _ in 0..u.int_in_range(0..=2)? {
            if args.is_object() && u.ratio(1, 3)? {
                change(u, args)?;
            }
        }
    }
    Ok((weights, inputs, FORMATS[format]))
}

fn change(u: &mut Unstructured<'_>, args: &mut Value) -> Result<()> {
    match u.int_in_range(0..=8)? {
        0 => args["num_bits"] = number(u, &[4, 8, 3])?,
        1 => args["type"] = text(u, &["int", "float"])?,
        2 => args["symmetric"] = json!(u.arbitrary::<bool>()?),
        3 => args["group_size"] = number(u, &[-1, 0, 8, 16, 32, 128])?,
        4 => {
            let known = [
                "tensor",
                "channel",
                "group",
                "block",
                "token",
                "tensor_group",
            ];
            args["strategy"] = text(u, &known)?;
        }
        5 => {
            let block = json!([number(u, &[8, 16, 128])?, number(u, &[1, 32])?]);
            args["block_structure"] = pick(u, &[block, json!("16x8"), json!("x")])?;
        }
        6 => args["dynamic"] = pick(u, &[json!(true), json!(false), json!("local"), json!(3)])?,
        7 => args["actorder"] = pick(u, &[json!("weight"), json!("group"), json!(false)])?,
        _ => args["scale_dtype"] = text(u, &["torch.uint8", "torch.bfloat16"])?,
    }
    Ok(())
}
