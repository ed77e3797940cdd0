//! moekit's conformance suite, with and without zero points.

use moekit_quant::{ExpertLayout, MemorySource, MlpNames, MoeLayerSpec, RouterSpec, TensorDtype};
use moekit_testkit::QuantSample;
use quant_int8_rows::Int8Rows;

const EXPERTS: usize = 4;
const SIZE: usize = 6;

/// Every expert has codes of its own; hidden and intermediate size are the same.
fn sample(zero_points: bool) -> QuantSample {
    let layout = ExpertLayout::PerExpert {
        module: "experts".to_owned(),
        names: MlpNames::proj(),
        bias: false,
    };
    let router = RouterSpec::new("gate.weight");
    let layer = MoeLayerSpec::new(0, [EXPERTS, 2, SIZE, SIZE], layout, router);
    let mut tensors = MemorySource::default();
    for expert in 0..EXPERTS {
        for name in ["gate_proj", "up_proj", "down_proj"] {
            let module = format!("experts.{expert}.{name}");
            let codes: Vec<u8> = (0..SIZE * SIZE).map(|i| (50 * expert + i) as u8).collect();
            let scales: Vec<u8> = [0.5f32; SIZE]
                .into_iter()
                .flat_map(f32::to_le_bytes)
                .collect();
            tensors.insert(
                format!("{module}.weight"),
                TensorDtype::I8,
                [SIZE, SIZE],
                codes,
            );
            tensors.insert(
                format!("{module}.weight_scale"),
                TensorDtype::F32,
                [SIZE, 1],
                scales,
            );
            if zero_points {
                let zeros = [3u8; SIZE].to_vec();
                tensors.insert(
                    format!("{module}.weight_zero_point"),
                    TensorDtype::I8,
                    [SIZE, 1],
                    zeros,
                );
            }
        }
    }
    QuantSample::new(layer, tensors)
}

mod symmetric {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: quant_int8_rows,
        backend: Int8Rows::default(),
        sample: sample(false),
    }
}

mod with_zero_points {
    use super::*;

    moekit_testkit::quant_conformance! {
        plugin: quant_int8_rows,
        backend: Int8Rows { zero_points: true },
        sample: sample(true),
    }
}
