//! A MoE layer in plain loops and double precision, to compare with.
#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

pub mod ranks;

use burn::tensor::{Device, Tensor, TensorData};
use moekit_fused_moe::{Experts, FusedMoe, TrainableExperts};

/// Chosen experts of a token with their weights.
pub type Choice = Vec<(usize, f64)>;

/// Values that look random: `[rows, width]`.
pub fn noise(rows: usize, width: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    (0..rows * width)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect()
}

pub fn tensor(values: Vec<f32>, width: usize, device: &Device) -> Tensor<2> {
    let rows = values.len() / width;
    Tensor::from_data(TensorData::new(values, [rows, width]), device)
}

pub fn values<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.try_into_vec_as::<f32>().unwrap()
}

pub fn trainable(experts: &Experts) -> &TrainableExperts {
    match experts {
        Experts::Trainable(experts) => experts,
        _ => panic!("packed experts"),
    }
}

fn dot(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(&a, b)| f64::from(a) * b).sum()
}

/// `weight * x + bias` for a weight of whole rows.
fn linear(weight: &[f32], bias: Option<&[f32]>, x: &[f64]) -> Vec<f64> {
    let rows = weight.chunks_exact(x.len()).enumerate();
    rows.map(|(i, w)| dot(w, x) + bias.map_or(0.0, |b| f64::from(b[i])))
        .collect()
}

pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exp: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let sum: f64 = exp.iter().sum();
    exp.iter().map(|e| e / sum).collect()
}

/// The `k` largest by repeated search for the maximum; of equal values the first.
pub fn top_k(values: &[f64], k: usize) -> Vec<usize> {
    let mut left: Vec<usize> = (0..values.len()).collect();
    (0..k)
        .map(|_| {
            let mut best = 0;
            for i in 1..left.len() {
                if values[left[i]] > values[left[best]] {
                    best = i;
                }
            }
            left.remove(best)
        })
        .collect()
}

pub fn silu_mul(gate: f64, up: f64) -> f64 {
    gate / (1.0 + (-gate).exp()) * up
}

/// Logits of the gate, per token.
pub fn logits(layer: &FusedMoe, x: &[f32]) -> Vec<Vec<f64>> {
    let weight = values(layer.gate.weight.val());
    let bias = layer.gate.bias.as_ref().map(|b| values(b.val()));
    x.chunks_exact(layer.hidden_size())
        .map(|x| linear(&weight, bias.as_deref(), &widen(x)))
        .collect()
}

pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// Expert `index` of a trainable set for one token.
pub fn expert(
    experts: &Experts,
    index: usize,
    gated: bool,
    activation: impl Fn(f64, f64) -> f64,
    x: &[f64],
) -> Vec<f64> {
    let experts = trainable(experts);
    let [_, w13_rows, hidden] = experts.w13.val().dims();
    let [_, _, width] = experts.w2.val().dims();
    let w13 = values(experts.w13.val());
    let w2 = values(experts.w2.val());
    let w13 = &w13[index * w13_rows * hidden..(index + 1) * w13_rows * hidden];
    let w2 = &w2[index * hidden * width..(index + 1) * hidden * width];
    let bias = |b: &Option<_>, rows: usize| {
        b.as_ref().map(|b: &burn::module::Param<Tensor<2>>| {
            values(b.val())[index * rows..(index + 1) * rows].to_vec()
        })
    };
    let (b13, b2) = (
        bias(&experts.w13_bias, w13_rows),
        bias(&experts.w2_bias, hidden),
    );
    let both = linear(w13, b13.as_deref(), x);
    let inner: Vec<f64> = match gated {
        true => (0..width)
            .map(|i| activation(both[i], both[width + i]))
            .collect(),
        false => both.iter().map(|&u| activation(0.0, u)).collect(),
    };
    linear(w2, b2.as_deref(), &inner)
}

/// `sum w * expert(x)` over the choices.
pub fn routed_output(
    layer: &FusedMoe,
    x: &[f32],
    choices: &[Choice],
    gated: bool,
    activation: impl Fn(f64, f64) -> f64 + Copy,
) -> Vec<f64> {
    let hidden = layer.hidden_size();
    let mut output = vec![0.0; x.len()];
    let rows = output.chunks_exact_mut(hidden).zip(x.chunks_exact(hidden));
    for ((output, x), choice) in rows.zip(choices) {
        for &(index, weight) in choice {
            let y = expert(&layer.experts, index, gated, activation, &widen(x));
            output.iter_mut().zip(y).for_each(|(o, y)| *o += weight * y);
        }
    }
    output
}

/// The error relative to the norm of what is expected.
pub fn relative_error(got: &[f32], expected: &[f64]) -> f64 {
    assert_eq!(got.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut got.iter().zip(expected).map(|(&g, e)| f64::from(g) - e));
    difference / norm(&mut expected.iter().copied()).max(1e-30)
}

pub fn assert_near(got: &[f32], expected: &[f64], tolerance: f64) {
    let error = relative_error(got, expected);
    assert!(
        error <= tolerance,
        "relative error {error}\n{got:?}\n{expected:?}"
    );
}
