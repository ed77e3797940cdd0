//! moekit's conformance suite, by granularity of the scales.

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{FusedOrder, FusedTensor, TensorDtype};
use moekit_quant_fp8::{ActivationScheme, Fp8};
use sample::Tensors;

fn codes(tensors: &mut Tensors, name: &str, shape: &[usize]) {
    tensors.bytes(name, TensorDtype::F8E4M3, shape, 0..0x7f);
}

/// Blocks that divide neither size.
mod blocks {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_fp8,
        backend: Fp8 { weight_block_size: Some([40, 64]), ..Fp8::default() },
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            codes(tensors, &format!("{module}.weight"), &[rows, cols]);
            let grid = [rows.div_ceil(40), cols.div_ceil(64)];
            let scales = format!("{module}.weight_scale_inv");
            tensors.floats(scales, TensorDtype::F32, &grid);
        }),
    }
}

mod tensors {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_fp8,
        backend: Fp8 { activation_scheme: ActivationScheme::Static, ..Fp8::default() },
        sample: sample::per_expert(|tensors, module, shape| {
            codes(tensors, &format!("{module}.weight"), &shape);
            tensors.floats(format!("{module}.weight_scale"), TensorDtype::F32, &[]);
            tensors.floats(format!("{module}.input_scale"), TensorDtype::F32, &[1]);
        }),
    }
}

mod channels {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_fp8,
        backend: Fp8::default(),
        sample: sample::per_expert(|tensors, module, [rows, cols]| {
            codes(tensors, &format!("{module}.weight"), &[rows, cols]);
            tensors.floats(format!("{module}.weight_scale"), TensorDtype::BF16, &[rows, 1]);
        }),
    }
}

/// Stacked and transposed experts, blocks across the border of gate and up.
mod fused {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_fp8,
        backend: Fp8 { weight_block_size: Some([48, 32]), ..Fp8::default() },
        sample: sample::fused(
            FusedOrder::Halves,
            |name| FusedTensor::parameter(name).transposed(),
            |tensors, name, [experts, rows, cols]| {
                codes(tensors, name, &[experts, cols, rows]);
                let grid = [experts, cols.div_ceil(32), rows.div_ceil(48)];
                tensors.floats(format!("{name}_weight_scale_inv"), TensorDtype::F32, &grid);
            },
        ),
    }
}
