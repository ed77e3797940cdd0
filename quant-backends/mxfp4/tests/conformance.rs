//! moekit's conformance suite.

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{FusedOrder, FusedTensor, TensorDtype};
use moekit_quant_mxfp4::Mxfp4;

moekit_testkit::quant_conformance! {
    plugin: moekit_quant_mxfp4,
    backend: Mxfp4::default(),
    sample: sample::fused(
        FusedOrder::Interleaved,
        |name| FusedTensor::parameter(name).transposed().with_bias(format!("{name}_bias")),
        |tensors, name, [experts, rows, cols]| {
            let blocks = [experts, rows, cols / 32, 16];
            tensors.bytes(format!("{name}_blocks"), TensorDtype::U8, &blocks, 0..0xff);
            tensors.bytes(format!("{name}_scales"), TensorDtype::U8, &blocks[..3], 120..130);
            tensors.floats(format!("{name}_bias"), TensorDtype::BF16, &[experts, rows]);
        },
    ),
}
