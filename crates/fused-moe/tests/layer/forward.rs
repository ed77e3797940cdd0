//! Softmax gate and SwiGLU experts, by kernels and in tensor operations.

use burn::module::Param;
use burn::tensor::{DType, Device, Tensor};
use moekit_fused_moe::*;
use moekit_quant::{
    ExpertLayout, FusedOrder, FusedTensor, MlpNames, MoeLayerSpec, RouterSpec, SharedExpertsSpec,
};
use moekit_routing::ExpertRouting;

use crate::common::*;

const H: usize = 24;
const I: usize = 20;
const E: usize = 6;
const K: usize = 3;

fn config() -> FusedMoeConfig {
    FusedMoeConfig::new(H, I, E, K).with_seed(7)
}

fn choices(layer: &FusedMoe, x: &[f32], renormalize: bool) -> Vec<Choice> {
    let choose = |l: Vec<f64>| {
        let scores = softmax(&l);
        let ids = top_k(&scores, K);
        let sum: f64 = ids.iter().map(|&e| scores[e]).sum();
        let by = if renormalize { sum } else { 1.0 };
        ids.iter().map(|&e| (e, scores[e] / by)).collect()
    };
    logits(layer, x).into_iter().map(choose).collect()
}

#[test]
fn both_paths_equal_the_formula() {
    let device = Device::flex();
    for renormalize in [false, true] {
        for compute in [Compute::Auto, Compute::TensorOps] {
            let config = config().with_renormalize(renormalize).with_compute(compute);
            let layer = config.init(&device).unwrap();
            for tokens in [1, 2, 17] {
                let x = noise(tokens, H, tokens as u32);
                let expected = choices(&layer, &x, renormalize);
                let hidden = tensor(x.clone(), H, &device);
                let got = layer
                    .forward_detailed(hidden, ForwardOptions::new())
                    .unwrap();
                let ids: Vec<i64> = expected.iter().flatten().map(|c| c.0 as i64).collect();
                assert_eq!(got.topk_ids, ids);
                let weights: Vec<f64> = expected.iter().flatten().map(|c| c.1).collect();
                assert_near(&got.topk_weights, &weights, 1e-5);
                assert_eq!(got.load.counts().iter().sum::<u64>(), (tokens * K) as u64);
                let output = routed_output(&layer, &x, &expected, true, silu_mul);
                assert_near(&values(got.output), &output, 1e-5);
            }
        }
    }
}

#[test]
fn bf16_in_bf16_out() {
    let device = Device::flex();
    let x = noise(5, H, 3);
    let hidden = tensor(x, H, &device).cast(DType::BF16);
    let rounded = values(hidden.clone().cast(DType::F32));
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = config().with_compute(compute).init(&device).unwrap();
        let output = layer.forward(hidden.clone()).unwrap();
        assert_eq!(output.dtype(), DType::BF16);
        let expected = routed_output(
            &layer,
            &rounded,
            &choices(&layer, &rounded, false),
            true,
            silu_mul,
        );
        assert_near(&values(output.cast(DType::F32)), &expected, 4e-3);
    }
}

#[test]
fn no_tokens() {
    let device = Device::flex();
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = config().with_compute(compute).init(&device).unwrap();
        let hidden = Tensor::<2>::zeros([0, H], &device);
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        assert_eq!(got.output.dims(), [0, H]);
        assert!(got.topk_ids.is_empty());
        assert_eq!(got.load.counts(), [0; E]);
    }
}

#[test]
fn all_tokens_to_the_same_experts_and_ties_to_the_lowest_ids() {
    let device = Device::flex();
    for compute in [Compute::Auto, Compute::TensorOps] {
        let mut layer = config().with_compute(compute).init(&device).unwrap();
        // A gate of zeros: all experts tie for every token.
        layer.gate.weight = Param::from_tensor(Tensor::zeros([E, H], &device));
        let x = noise(9, H, 5);
        let hidden = tensor(x.clone(), H, &device);
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        assert_eq!(got.topk_ids, [0, 1, 2].repeat(9));
        assert_eq!(got.load.counts(), [9, 9, 9, 0, 0, 0]);
        let expected = vec![vec![(0, 1.0 / 6.0), (1, 1.0 / 6.0), (2, 1.0 / 6.0)]; 9];
        let output = routed_output(&layer, &x, &expected, true, silu_mul);
        assert_near(&values(got.output), &output, 1e-5);
    }
}

#[test]
fn padding_reaches_no_expert() {
    let device = Device::flex();
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = config().with_compute(compute).init(&device).unwrap();
        let mut x = noise(4, H, 8);
        let alone = values(
            layer
                .forward(tensor(x[..2 * H].to_vec(), H, &device))
                .unwrap(),
        );
        x[2 * H..].fill(f32::NAN);
        let options = ForwardOptions::new().with_valid_tokens(2);
        let got = layer
            .forward_detailed(tensor(x, H, &device), options)
            .unwrap();
        assert_eq!(got.topk_ids[2 * K..], [-1; 2 * K]);
        assert_eq!(got.physical_ids[2 * K..], [-1; 2 * K]);
        assert_eq!(got.load.counts().iter().sum::<u64>(), 2 * K as u64);
        let output = values(got.output);
        assert_eq!(output[..2 * H], alone);
        assert_eq!(output[2 * H..], [0.0; 2 * H]);
    }
}

/// Routed and shared experts have the biases that the specification names.
#[test]
fn a_specification_says_which_experts_have_biases() {
    let stack = |biased: bool| {
        let tensor = FusedTensor::parameter("experts");
        match biased {
            true => tensor.with_bias("experts_bias"),
            false => tensor,
        }
    };
    for (routed, shared) in [(false, false), (true, false), (false, true), (true, true)] {
        let experts = ExpertLayout::Fused {
            gate_up: stack(routed),
            order: FusedOrder::Halves,
            down: stack(routed),
        };
        let mut spec = MoeLayerSpec::new(0, [E, K, H, I], experts, RouterSpec::new("gate.weight"));
        let mut mlp = SharedExpertsSpec::new("shared", MlpNames::proj(), I);
        mlp.bias = shared;
        spec.shared = Some(mlp);
        let layer = FusedMoeConfig::from_spec(&spec)
            .init(&Device::flex())
            .unwrap();
        let mlp = layer.shared.as_ref().unwrap().mlp.as_ref().unwrap();
        for (experts, biased) in [(&layer.experts, routed), (mlp, shared)] {
            let experts = trainable(experts);
            assert_eq!(experts.w13_bias.is_some(), biased);
            assert_eq!(experts.w2_bias.is_some(), biased);
        }
    }
}

#[test]
fn wrong_inputs_are_named() {
    let device = Device::flex();
    let layer = config().init(&device).unwrap();
    let error = layer
        .forward(Tensor::zeros([2, H + 1], &device))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("[2, 25]") && error.contains("[num_tokens, 24]"),
        "{error}"
    );
    let f64s = Tensor::<2>::zeros([2, H], (&device, DType::F64));
    let error = layer.forward(f64s).unwrap_err().to_string();
    assert!(error.contains("F64") && error.contains("BF16"), "{error}");
    let options = ForwardOptions::new().with_valid_tokens(3);
    let error = layer.forward_detailed(Tensor::zeros([2, H], &device), options);
    let error = error.unwrap_err().to_string();
    assert!(
        error.contains("3 valid tokens in a batch of 2 rows"),
        "{error}"
    );
    for (config, message) in [
        (FusedMoeConfig::new(0, I, E, K), "hidden_size is 0"),
        (FusedMoeConfig::new(H, 0, E, K), "intermediate_size is 0"),
        (FusedMoeConfig::new(H, I, E, E + 1), "top-k is 7"),
        (FusedMoeConfig::new(H, I, E, 0), "top-k is 0"),
    ] {
        let error = config.init(&device).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}

#[test]
fn the_layer_answers_for_its_routing() {
    let layer = config().init(&Device::flex()).unwrap();
    let routing: &dyn ExpertRouting = &layer;
    assert_eq!(routing.num_logical_experts(), E);
    assert_eq!(routing.num_local_experts(), E);
    assert_eq!(routing.map_global_to_local(-1), None);
}
