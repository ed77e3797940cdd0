//! Shared experts: apart or fused into the local slots, with gate and scaling.

use std::sync::Arc;

use burn::module::Param;
use burn::tensor::{Device, Tensor};
use moekit_fused_moe::*;
use moekit_quant::RouterSpec;
use moekit_routing::{Placement, RoutingTable, RoutingTableProvider, Topology};

use crate::common::*;

const H: usize = 12;
const I: usize = 6;
const E: usize = 5;
const S: usize = 2;

#[derive(Debug)]
struct Fixed(Arc<RoutingTable>);

impl RoutingTableProvider for Fixed {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.0.clone()
    }
}

/// One rank with `shared` fused shared experts.
fn table(shared: usize) -> Arc<Fixed> {
    let placement = Placement::from_ranks(E, &[(0..E).collect::<Vec<_>>()]).unwrap();
    let table = RoutingTable::new(placement, Topology::new(1).unwrap(), shared, 0).unwrap();
    Arc::new(Fixed(Arc::new(table)))
}

fn shared_config(gate: bool) -> SharedExpertsConfig {
    SharedExpertsConfig::new(S * I)
        .with_num_experts(S)
        .with_gate(gate)
        .with_scaling(0.75)
}

fn config(gate: bool, compute: Compute) -> FusedMoeConfig {
    FusedMoeConfig::new(H, I, E, 2)
        .with_shared_experts(shared_config(gate))
        .with_compute(compute)
}

fn choices(output: &FusedMoeOutput) -> Vec<Choice> {
    let pairs = output.topk_ids.iter().zip(&output.topk_weights);
    let pairs: Vec<_> = pairs.map(|(&e, &w)| (e as usize, f64::from(w))).collect();
    pairs.chunks(2).map(<[_]>::to_vec).collect()
}

/// What the shared experts add, from the weights of the separate MLP.
fn shared_output(layer: &FusedMoe, x: &[f32]) -> Vec<f64> {
    let shared = layer.shared.as_ref().unwrap();
    let mlp = shared.mlp.as_ref().unwrap();
    let gate = shared.gate.as_ref().map(|g| values(g.val()));
    let row = |x: &[f32]| {
        let weight = gate.as_ref().map_or(1.0, |gate| {
            let logit: f64 = gate
                .iter()
                .zip(x)
                .map(|(&g, &x)| f64::from(g) * f64::from(x))
                .sum();
            1.0 / (1.0 + (-logit).exp())
        });
        let y = expert(mlp, 0, true, silu_mul, &widen(x));
        y.into_iter()
            .map(move |y| 0.75 * weight * y)
            .collect::<Vec<_>>()
    };
    x.chunks_exact(H).flat_map(row).collect()
}

/// The fused layer with the weights of the separate one: each shared expert is `I` of its columns.
fn fused_from(separate: &FusedMoe, gate: bool, compute: Compute) -> FusedMoe {
    let device = Device::flex();
    let mut fused = config(gate, compute)
        .with_routing(table(S))
        .init(&device)
        .unwrap();
    assert!(fused.shared.as_ref().unwrap().mlp.is_none());
    let routed = trainable(&separate.experts);
    let mlp = trainable(separate.shared.as_ref().unwrap().mlp.as_ref().unwrap());
    let w13 = mlp.w13.val().squeeze_dim::<2>(0);
    let w2 = mlp.w2.val().squeeze_dim::<2>(0);
    let (mut all13, mut all2) = (vec![routed.w13.val()], vec![routed.w2.val()]);
    for s in 0..S {
        let half = |first: usize| w13.clone().narrow(0, first + s * I, I);
        all13.push(Tensor::cat(vec![half(0), half(S * I)], 0).unsqueeze_dim(0));
        all2.push(w2.clone().narrow(1, s * I, I).unsqueeze_dim(0));
    }
    let Experts::Trainable(experts) = &mut fused.experts else {
        panic!("not trainable")
    };
    assert_eq!(experts.num_local_experts(), E + S);
    experts.w13 = Param::from_tensor(Tensor::cat(all13, 0));
    experts.w2 = Param::from_tensor(Tensor::cat(all2, 0));
    fused.gate = separate.gate.clone();
    fused.shared.as_mut().unwrap().gate = separate.shared.as_ref().unwrap().gate.clone();
    fused
}

#[test]
fn apart_and_fused_equal_the_formula() {
    let device = Device::flex();
    let x = noise(7, H, 5);
    for compute in [Compute::Auto, Compute::TensorOps] {
        for gate in [false, true] {
            let separate = config(gate, compute).init(&device).unwrap();
            let hidden = || tensor(x.clone(), H, &device);
            let got = separate
                .forward_detailed(hidden(), ForwardOptions::new())
                .unwrap();
            let mut expected = routed_output(&separate, &x, &choices(&got), true, silu_mul);
            let shared = shared_output(&separate, &x);
            expected.iter_mut().zip(shared).for_each(|(e, s)| *e += s);
            assert_near(&values(got.output), &expected, 1e-5);

            let fused = fused_from(&separate, gate, compute);
            let got_fused = fused
                .forward_detailed(hidden(), ForwardOptions::new())
                .unwrap();
            assert_near(&values(got_fused.output), &expected, 1e-5);
            assert_eq!(got_fused.topk_ids, got.topk_ids);
            assert_eq!(
                got_fused.load.counts(),
                got.load.counts(),
                "shared experts are no load"
            );
            let shared_slots: Vec<_> = got_fused
                .physical_ids
                .chunks(2 + S)
                .map(|r| &r[2..])
                .collect();
            assert!(
                shared_slots
                    .iter()
                    .all(|ids| *ids == [E as i64, E as i64 + 1])
            );
        }
    }
}

/// Llama 4: the router's weight is on the input of routed experts, never on that of shared ones.
#[test]
fn weights_on_the_input_leave_shared_experts_alone() {
    let device = Device::flex();
    let x = noise(5, H, 6);
    let mut router = RouterSpec::new("w");
    router.weight_on_input = true;
    for compute in [Compute::Auto, Compute::TensorOps] {
        let layer = config(true, compute)
            .with_router(router.clone())
            .init(&device)
            .unwrap();
        let hidden = tensor(x.clone(), H, &device);
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        let mut expected = shared_output(&layer, &x);
        let rows = expected
            .chunks_exact_mut(H)
            .zip(x.chunks_exact(H))
            .zip(choices(&got));
        for ((sum, x), choice) in rows {
            for (index, weight) in choice {
                let x: Vec<f64> = x.iter().map(|&x| f64::from(x) * weight).collect();
                let y = expert(&layer.experts, index, true, silu_mul, &x);
                sum.iter_mut().zip(y).for_each(|(s, y)| *s += y);
            }
        }
        assert_near(&values(got.output), &expected, 1e-5);
    }
    let fused = config(true, Compute::Auto)
        .with_router(router)
        .with_routing(table(S));
    let error = fused.init(&device).unwrap_err().to_string();
    assert!(
        error.contains("weights are applied on the input"),
        "{error}"
    );
}

#[test]
fn padding_passes_no_shared_expert() {
    let device = Device::flex();
    for compute in [Compute::Auto, Compute::TensorOps] {
        for shared in [0, S] {
            let config = config(true, compute).with_routing(table(shared));
            let layer = config.init(&device).unwrap();
            let options = ForwardOptions::new().with_valid_tokens(1);
            let hidden = tensor(noise(3, H, 1), H, &device);
            let output = values(layer.forward_detailed(hidden, options).unwrap().output);
            assert!(output[..H].iter().any(|&y| y != 0.0));
            assert_eq!(output[H..], [0.0; 2 * H]);
        }
    }
}

#[test]
fn shared_experts_that_cannot_be_fused_are_refused() {
    let device = Device::flex();
    let fused = |config: FusedMoeConfig| config.with_routing(table(S)).init(&device);
    let plain = FusedMoeConfig::new(H, I, E, 2);
    for (config, message) in [
        (plain.clone(), "the layer has no shared experts"),
        (
            plain
                .clone()
                .with_shared_experts(SharedExpertsConfig::new(S * I)),
            "2 fused shared experts, but the layer has 1",
        ),
        (
            plain.with_shared_experts(SharedExpertsConfig::new(S * I + 1).with_num_experts(S)),
            "their whole width is 13, not 2 times the 6",
        ),
        (
            config(false, Compute::Auto).with_expert_bias(true),
            "their bias is false and that of the routed experts is true",
        ),
    ] {
        let error = fused(config).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
    }
}
