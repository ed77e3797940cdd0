//! Every activation, with biases, by kernels and in tensor operations.

use burn::module::Param;
use burn::tensor::Device;
use moekit_fused_moe::*;
use moekit_quant::Activation;

use crate::common::*;

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// The error function by its Taylor series, which converges everywhere.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    2.0 / std::f64::consts::PI.sqrt() * sum
}

fn gelu(x: f64) -> f64 {
    0.5 * x * (1.0 + erf(x / 2.0_f64.sqrt()))
}

fn gelu_tanh(x: f64) -> f64 {
    let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
    0.5 * x * (1.0 + inner.tanh())
}

fn clamp(u: f64, limit: f64) -> f64 {
    u.min(limit).max(-limit)
}

fn check(activation: Activation, formula: fn(f64, f64) -> f64) {
    let device = Device::flex();
    let x: Vec<f32> = noise(9, 16, 4).iter().map(|x| x * 3.0).collect();
    let mut seen = Vec::new();
    for compute in [Compute::Auto, Compute::TensorOps] {
        let config = FusedMoeConfig::new(16, 10, 5, 2)
            .with_activation(activation)
            .with_expert_bias(true)
            .with_compute(compute);
        let mut layer = config.init(&device).unwrap();
        let Experts::Trainable(experts) = &mut layer.experts else {
            panic!("not trainable")
        };
        // The device's own generator is shared with the tests that run beside this one.
        for (seed, bias) in [(11, &mut experts.w13_bias), (12, &mut experts.w2_bias)] {
            let [rows, width] = bias.as_ref().unwrap().val().dims();
            let halves = noise(rows, width, seed).iter().map(|b| b / 2.0).collect();
            *bias = Some(Param::from_tensor(tensor(halves, width, &device)));
        }
        let hidden = tensor(x.clone(), 16, &device);
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        let choices: Vec<Choice> = got
            .topk_ids
            .chunks(2)
            .zip(got.topk_weights.chunks(2))
            .map(|(ids, w)| {
                ids.iter()
                    .zip(w)
                    .map(|(&e, &w)| (e as usize, f64::from(w)))
                    .collect()
            })
            .collect();
        let expected = routed_output(&layer, &x, &choices, activation.is_gated(), formula);
        assert_near(&values(got.output.clone()), &expected, 1e-5);
        seen.push(values(got.output));
    }
    assert_near(&seen[0], &widen(&seen[1]), 1e-5);
}

#[test]
fn silu() {
    check(Activation::SILU, silu_mul);
    check(Activation::Silu { limit: Some(0.4) }, |g, u| {
        silu_mul(g.min(0.4), clamp(u, 0.4))
    });
    check(Activation::SiluNoMul, |_, u| u * sigmoid(u));
}

#[test]
fn gelus() {
    check(Activation::Gelu { limit: None }, |g, u| gelu(g) * u);
    check(Activation::Gelu { limit: Some(0.5) }, |g, u| {
        gelu(g.min(0.5)) * clamp(u, 0.5)
    });
    check(Activation::GeluTanh { limit: None }, |g, u| {
        gelu_tanh(g) * u
    });
    check(Activation::GeluTanh { limit: Some(0.3) }, |g, u| {
        gelu_tanh(g.min(0.3)) * clamp(u, 0.3)
    });
    check(Activation::GeluNoMul, |_, u| gelu(u));
    check(Activation::GeluTanhNoMul, |_, u| gelu_tanh(u));
}

#[test]
fn swiglu_oai_uses_the_configured_constants() {
    let limit = Some(0.7);
    check(
        Activation::SwigluOai {
            alpha: 1.702,
            beta: 1.0,
            limit,
        },
        |g, u| {
            let g = g.min(f64::from(0.7_f32));
            (clamp(u, f64::from(0.7_f32)) + 1.0) * g * sigmoid(f64::from(1.702_f32) * g)
        },
    );
    check(
        Activation::SwigluOai {
            alpha: 0.5,
            beta: -0.25,
            limit: None,
        },
        |g, u| (u - 0.25) * g * sigmoid(0.5 * g),
    );
}

#[test]
fn step_and_relu2() {
    check(Activation::SwigluStep { limit: 0.25 }, |g, u| {
        silu_mul(g, 1.0).min(0.25) * clamp(u, 0.25)
    });
    check(Activation::Relu2NoMul, |_, u| u.max(0.0).powi(2));
}

#[test]
fn impossible_constants_are_refused() {
    let device = Device::flex();
    for activation in [
        Activation::SwigluStep { limit: f32::NAN },
        Activation::Silu { limit: Some(-1.0) },
        Activation::SwigluOai {
            alpha: f32::INFINITY,
            beta: 0.0,
            limit: None,
        },
    ] {
        for compute in [Compute::Auto, Compute::TensorOps] {
            let config = FusedMoeConfig::new(4, 4, 2, 1).with_activation(activation);
            let result = config.with_compute(compute).init(&device);
            assert!(result.is_err(), "{activation:?} {compute:?}");
        }
    }
}
