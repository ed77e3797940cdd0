//! moekit's conformance suite.

#[path = "../../test_sample.rs"]
mod sample;

use moekit_quant::{FusedOrder, FusedTensor, TensorDtype};
use moekit_quant_unquantized::Unquantized;

/// Each linear in a type of its own.
mod per_expert {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_unquantized,
        backend: Unquantized {},
        sample: sample::per_expert(|tensors, module, shape| {
            let dtype = match module.ends_with("up_proj") {
                true => TensorDtype::F32,
                false => TensorDtype::BF16,
            };
            tensors.floats(format!("{module}.weight"), dtype, &shape);
        }),
    }
}

/// gpt-oss: transposed, interleaved, with biases.
mod fused {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: moekit_quant_unquantized,
        backend: Unquantized {},
        sample: sample::fused(
            FusedOrder::Interleaved,
            |name| FusedTensor::parameter(name).transposed().with_bias(format!("{name}_bias")),
            |tensors, name, [experts, rows, cols]| {
                tensors.floats(name, TensorDtype::BF16, &[experts, cols, rows]);
                tensors.floats(format!("{name}_bias"), TensorDtype::BF16, &[experts, rows]);
            },
        ),
    }
}
