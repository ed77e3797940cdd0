//! Packed experts: on the CPU, in tensor operations, under autodiff.

use std::sync::Arc;

use burn::module::Module;
use burn::tensor::{DType, Device};
use bytes::Bytes;
use moekit_fused_moe::*;
use moekit_quant::{
    Activation, CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix, ScaleFormat,
    ScaleGrid,
};

use crate::common::*;

const H: usize = 16;
const I: usize = 8;
const E: usize = 4;

/// A matrix of bytes with a scale per row, and its values.
fn matrix(rows: usize, cols: usize, seed: u32) -> (PackedMatrix, Vec<f32>) {
    let scaled = |v: &f32| (v * 100.0) as i8;
    let codes: Vec<i8> = noise(rows, cols, seed).iter().map(scaled).collect();
    let scales: Vec<f32> = noise(1, rows, seed + 1).iter().map(|s| s * 0.01).collect();
    let value = |(at, &code): (usize, &i8)| f32::from(code) * scales[at / cols];
    let values = codes.iter().enumerate().map(value).collect();
    let grid_bytes = scales
        .iter()
        .flat_map(|s| s.to_le_bytes())
        .collect::<Bytes>();
    let grid = ScaleGrid::new(ScaleFormat::F32, [rows, 1], [1, cols], [4, 4], grid_bytes).unwrap();
    let codes: Bytes = codes.iter().map(|c| c.cast_unsigned()).collect();
    let matrix = PackedMatrix::contiguous(CodeFormat::I8, [rows, cols], codes).unwrap();
    (matrix.with_scales(grid).unwrap(), values)
}

/// Packed weights and their values: w13 and w2 of all experts.
fn packed_weights() -> (ExpertWeights, Vec<f32>, Vec<f32>) {
    let (mut w13, mut w2, mut experts) = (Vec::new(), Vec::new(), Vec::new());
    for e in 0..E as u32 {
        let (gate, gate_values) = matrix(I, H, 10 * e + 1);
        let (up, up_values) = matrix(I, H, 10 * e + 3);
        let (down, down_values) = matrix(H, I, 10 * e + 5);
        w13.extend([gate_values, up_values].concat());
        w2.extend(down_values);
        let [gate, up, down] = [gate, up, down].map(ExpertLinear::new);
        experts.push(Arc::new(ExpertMlp::new(Some(gate), up, down).unwrap()));
    }
    (ExpertWeights::new(H, I, experts).unwrap(), w13, w2)
}

/// Packed weights and the same as a trainable layer.
fn layers(compute: Compute) -> (FusedMoe, FusedMoe) {
    let device = Device::flex();
    let config = FusedMoeConfig::new(H, I, E, 2).with_compute(compute);
    let mut plain = config.init(&device).unwrap();
    let (weights, w13, w2) = packed_weights();
    let Experts::Trainable(trainable) = &mut plain.experts else {
        panic!("not trainable")
    };
    let stack = |values, rows, cols| {
        let data = burn::tensor::TensorData::new(values, [E, rows, cols]);
        burn::module::Param::from_tensor(burn::tensor::Tensor::from_data(data, &device))
    };
    trainable.w13 = stack(w13, 2 * I, H);
    trainable.w2 = stack(w2, H, I);
    let gate = GateTensors::new(values(plain.gate.weight.val()));
    let packed = config
        .init_packed(gate, Arc::new(weights), &device)
        .unwrap();
    (packed, plain)
}

#[test]
fn packed_equals_trainable() {
    let device = Device::flex();
    let x = noise(9, H, 2);
    for compute in [Compute::Auto, Compute::TensorOps] {
        let (packed, plain) = layers(compute);
        let got = values(packed.forward(tensor(x.clone(), H, &device)).unwrap());
        let expected = values(plain.forward(tensor(x.clone(), H, &device)).unwrap());
        assert_eq!(got, expected, "the same weights by the same path");
    }
}

/// A gate of bf16 values is kept in bf16, and gives the bits that it gives in f32.
#[test]
fn a_gate_of_bf16_values_is_kept_in_bf16() {
    let device = Device::flex();
    let x = noise(9, H, 2);
    for compute in [Compute::Auto, Compute::TensorOps] {
        let config = FusedMoeConfig::new(H, I, E, 2).with_compute(compute);
        let narrow = |v: f32| half::bf16::from_f32(v).to_f32();
        let gate: Vec<f32> = noise(E, H, 5).into_iter().map(narrow).collect();
        let layer = |gate: &[f32]| {
            let (gate, experts) = (GateTensors::new(gate.to_vec()), packed_weights().0);
            config
                .init_packed(gate, Arc::new(experts), &device)
                .unwrap()
        };
        let kept = layer(&gate);
        assert_eq!(kept.gate.weight.val().dtype(), DType::BF16);
        let mut wide = layer(&gate);
        wide.gate.weight = burn::module::Param::from_tensor(tensor(gate.clone(), H, &device));
        let output =
            |layer: &FusedMoe| values(layer.forward(tensor(x.clone(), H, &device)).unwrap());
        assert_eq!(output(&kept), output(&wide));
        // Someone may cast it to any other type.
        for dtype in [DType::F64, DType::F16] {
            let mut cast = layer(&gate);
            cast.gate.weight = cast.gate.weight.map(|weight| weight.cast(dtype));
            assert_eq!(cast.gate.weight.val().dtype(), dtype);
            let difference = |(a, b): (f32, f32)| (a - b).abs();
            let pairs = output(&cast).into_iter().zip(output(&wide));
            assert!(pairs.map(difference).all(|d| d < 1e-3));
        }

        let mut other = gate.clone();
        other[3] = 0.1;
        assert_eq!(layer(&other).gate.weight.val().dtype(), DType::F32);
    }
}

#[test]
fn gradients_pass_packed_experts() {
    let device = Device::flex();
    let (packed, plain) = layers(Compute::Auto);
    let gradient = |layer: &FusedMoe| {
        let input = tensor(noise(5, H, 3), H, &device).autodiff().require_grad();
        let output = layer.forward(input.clone()).unwrap();
        values(input.grad(&output.sum().backward()).unwrap())
    };
    let expected = gradient(&plain);
    assert!(expected.iter().any(|g| g.abs() > 1e-3));
    assert_eq!(gradient(&packed), expected);
}

#[test]
fn packed_experts_are_no_parameters() {
    let (packed, plain) = layers(Compute::Auto);
    assert_eq!(packed.num_params(), E * H, "the gate alone");
    assert_eq!(plain.num_params(), E * H + 3 * E * H * I);
}

#[test]
fn what_does_not_fit_is_named() {
    let device = Device::flex();
    let (_, plain) = layers(Compute::Auto);
    let weights = Arc::new(packed_weights().0);
    let gate = GateTensors::new(values(plain.gate.weight.val()));
    let config = FusedMoeConfig::new(H, I, E, 2);
    let mut biased = gate.clone();
    biased.bias = Some(vec![0.0; E]);
    let mut short = gate.clone();
    short.weight.pop();
    let with_shared = config
        .clone()
        .with_shared_experts(SharedExpertsConfig::new(I));
    let ungated = config.clone().with_activation(Activation::Relu2NoMul);
    for (config, gate, message) in [
        (
            &FusedMoeConfig::new(H, I, E + 1, 2),
            &gate,
            "[4, 16, 8], expected [5, 16, 8]",
        ),
        (
            &FusedMoeConfig::new(H, I + 1, E, 2),
            &gate,
            "[4, 16, 8], expected [4, 16, 9]",
        ),
        (
            &config,
            &biased,
            "a gate bias is given, but the configuration has none",
        ),
        (
            &config,
            &short,
            "gate weight has shape [63], expected [4, 16]",
        ),
        (
            &with_shared,
            &gate,
            "no set of separate shared experts is given",
        ),
    ] {
        let error = config
            .init_packed(gate.clone(), weights.clone(), &device)
            .unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
    }
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = ungated.clone().with_compute(compute);
        let layer = layer
            .init_packed(gate.clone(), weights.clone(), &device)
            .unwrap();
        let result = layer.forward(tensor(noise(2, H, 1), H, &device));
        assert!(
            result.is_err(),
            "{compute:?}: a gate projection that nothing uses"
        );
    }
}
