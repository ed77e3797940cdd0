//! The conformance suite on the backend `unquantized`, in each type and layout that it reads.

use moekit_quant::{
    ExpertLayout, FusedOrder, FusedTensor, MemorySource, MlpNames, MoeLayerSpec, RouterSpec,
    TensorDtype,
};
use moekit_quant_unquantized::Unquantized;
use moekit_testkit::QuantSample;

const EXPERTS: usize = 6;
const HIDDEN: usize = 8;
const INTERMEDIATE: usize = 5;

fn layer(layout: ExpertLayout) -> MoeLayerSpec {
    let sizes = [EXPERTS, 2, HIDDEN, INTERMEDIATE];
    MoeLayerSpec::new(0, sizes, layout, RouterSpec::new("gate.weight"))
}

/// Values that f16 and bf16 hold, different for every tensor.
fn bytes(dtype: TensorDtype, first: usize, len: usize) -> Vec<u8> {
    let values = (first..first + len).map(|i| (i % 128) as f32 + 1.0);
    match dtype {
        TensorDtype::BF16 => values
            .flat_map(|v| ((v.to_bits() >> 16) as u16).to_le_bytes())
            .collect(),
        _ => values.flat_map(f32::to_le_bytes).collect(),
    }
}

fn per_expert(dtype: TensorDtype) -> QuantSample {
    let mut tensors = MemorySource::default();
    for expert in 0..EXPERTS {
        for (name, shape) in [
            ("w1", [INTERMEDIATE, HIDDEN]),
            ("w3", [INTERMEDIATE, HIDDEN]),
            ("w2", [HIDDEN, INTERMEDIATE]),
        ] {
            let codes = bytes(dtype, 7 * expert, HIDDEN * INTERMEDIATE);
            tensors.insert(
                format!("experts.{expert}.{name}.weight"),
                dtype,
                shape,
                codes,
            );
        }
    }
    let layout = ExpertLayout::PerExpert {
        module: "experts".to_owned(),
        names: MlpNames::w123(),
        bias: false,
    };
    QuantSample::new(layer(layout), tensors)
}

fn fused(order: FusedOrder) -> QuantSample {
    let mut tensors = MemorySource::default();
    for (name, shape) in [
        ("gate_up", [EXPERTS, 2 * INTERMEDIATE, HIDDEN]),
        ("down", [EXPERTS, HIDDEN, INTERMEDIATE]),
    ] {
        let codes = bytes(TensorDtype::F32, 0, shape.iter().product());
        tensors.insert(name, TensorDtype::F32, shape, codes);
    }
    let layout = ExpertLayout::Fused {
        gate_up: FusedTensor::parameter("gate_up"),
        order,
        down: FusedTensor::parameter("down"),
    };
    QuantSample::new(layer(layout), tensors)
}

macro_rules! conforms {
    ($module:ident, $sample:expr) => {
        mod $module {
            use super::*;

            moekit_testkit::quant_conformance! {
                plugin: moekit_quant_unquantized,
                backend: Unquantized {},
                sample: $sample,
            }
        }
    };
}

conforms!(f32_per_expert, per_expert(TensorDtype::F32));
conforms!(bf16_per_expert, per_expert(TensorDtype::BF16));
conforms!(fused_halves, fused(FusedOrder::Halves));
conforms!(fused_interleaved, fused(FusedOrder::Interleaved));
