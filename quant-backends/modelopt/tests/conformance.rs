//! moekit's conformance suite, by algorithm.

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{FusedOrder, FusedTensor, TensorDtype};
use moekit_quant_modelopt::{LayerAlgorithm, ModelOpt};
use sample::Tensors;

fn algorithm(name: &str) -> ModelOpt {
    ModelOpt {
        quant_algo: Some(name.to_owned()),
        ..ModelOpt::default()
    }
}

fn fp8_codes(tensors: &mut Tensors, module: &str, shape: [usize; 2]) {
    tensors.bytes(
        format!("{module}.weight"),
        TensorDtype::F8E4M3,
        &shape,
        0..0x7f,
    );
}

fn nvfp4(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    tensors.bytes(
        format!("{module}.weight"),
        TensorDtype::U8,
        &[rows, cols / 2],
        0..0xff,
    );
    let scales = format!("{module}.weight_scale");
    tensors.bytes(scales, TensorDtype::F8E4M3, &[rows, cols / 16], 0x20..0x50);
    tensors.floats(format!("{module}.weight_scale_2"), TensorDtype::F32, &[]);
}

fn mxfp8(tensors: &mut Tensors, module: &str, [rows, cols]: [usize; 2]) {
    fp8_codes(tensors, module, [rows, cols]);
    let scales = format!("{module}.weight_scale");
    tensors.bytes(scales, TensorDtype::U8, &[rows, cols / 32], 120..130);
}

mod fp8 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("FP8"),
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            tensors.floats(format!("{module}.weight_scale"), TensorDtype::F32, &[]);
            tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[]);
        }),
    }
}

mod fp8_per_channel_per_token {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("FP8_PER_CHANNEL_PER_TOKEN"),
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            tensors.floats(format!("{module}.weight_scale"), TensorDtype::F32, &shape[..1]);
        }),
    }
}

/// A block is larger than one of the sizes.
mod fp8_pb_wo {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: ModelOpt { group_size: Some(80), ..algorithm("fp8_pb_wo") },
        sample: sample::per_expert(|tensors, module, shape| {
            fp8_codes(tensors, module, shape);
            let [rows, cols] = shape.map(|size| size.div_ceil(80));
            let scales = format!("{module}.weight_scale");
            tensors.floats(scales, TensorDtype::F32, &[rows, 1, cols, 1]);
        }),
    }
}

mod nvfp4_activations {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("NVFP4"),
        sample: sample::per_expert(|tensors, module, shape| {
            nvfp4(tensors, module, shape);
            tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[]);
        }),
    }
}

mod w4a16_nvfp4 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("W4A16_NVFP4"),
        sample: sample::per_expert(nvfp4),
    }
}

/// Llama 4: nibbles along the input features of transposed stacks.
mod fused_nvfp4 {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("W4A16_NVFP4"),
        sample: sample::fused(
            FusedOrder::Halves,
            |name| FusedTensor::parameter(name).transposed(),
            |tensors, name, [experts, rows, cols]| {
                tensors.bytes(name, TensorDtype::U8, &[experts, cols / 2, rows], 0..0xff);
                let (scales, grid) = (format!("{name}_weight_scale"), [experts, cols / 16, rows]);
                tensors.bytes(scales, TensorDtype::F8E4M3, &grid, 0x20..0x50);
                tensors.floats(format!("{name}_weight_scale_2"), TensorDtype::F32, &[experts]);
            },
        ),
    }
}

mod mxfp8_groups {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: algorithm("MXFP8"),
        sample: sample::per_expert(mxfp8),
    }
}

mod mxfp8_method {
    use super::*;
    use moekit_quant_modelopt::mxfp8::Mxfp8;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt::mxfp8,
        backend: Mxfp8::default(),
        sample: sample::per_expert(mxfp8),
    }
}

/// The entry of a linear wins over that of what holds it; without one it is a float.
mod mixed_precision {
    use super::*;

    fn mixed() -> ModelOpt {
        let entry = |module: &str, algorithm: &str| {
            let layer = LayerAlgorithm {
                quant_algo: Some(algorithm.to_owned()),
                group_size: None,
            };
            (module.to_owned(), layer)
        };
        let experts = (0..2).map(|e| entry(&format!("layers.0.experts.{e}"), "W4A16_NVFP4"));
        let own = entry("layers.0.experts.1.up_proj", "MXFP8");
        ModelOpt {
            quantized_layers: Some(experts.chain([own]).collect()),
            ..algorithm("MIXED_PRECISION")
        }
    }

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_modelopt,
        backend: mixed(),
        sample: sample::per_expert(|tensors, module, shape| {
            if module == "layers.0.experts.1.up_proj" {
                mxfp8(tensors, module, shape);
            } else if module.contains(".0.experts.0.") || module.contains(".0.experts.1.") {
                nvfp4(tensors, module, shape);
            } else {
                tensors.floats(format!("{module}.weight"), TensorDtype::BF16, &shape);
            }
        }),
    }
}
