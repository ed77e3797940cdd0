//! Gradients against finite differences.

use burn::module::Param;
use burn::tensor::{Device, Tensor, TensorData};
use moekit_fused_moe::*;
use moekit_quant::{Activation, RouterSpec, ScoringFunction, TopKSelection};

use crate::common::*;

const H: usize = 6;
const T: usize = 5;

/// The sum of all outputs, each times a fixed number, in double precision.
fn objective(output: &[f32]) -> f64 {
    let factors = noise(T, H, 77);
    output
        .iter()
        .zip(factors)
        .map(|(&y, f)| f64::from(y) * f64::from(f))
        .sum()
}

fn with_value<const D: usize>(tensor: &Tensor<D>, at: usize, step: f32) -> Tensor<D> {
    let mut data = values(tensor.clone());
    data[at] += step;
    Tensor::from_data(TensorData::new(data, tensor.dims()), &tensor.device())
}

/// Compares a gradient with central differences of the kernels' forward pass.
fn compare<const D: usize>(
    name: &str,
    gradient: Option<Tensor<D>>,
    value: &Tensor<D>,
    forward: impl Fn(Tensor<D>) -> f64,
) {
    let step = 4e-3_f32;
    let gradient = values(gradient.unwrap_or_else(|| panic!("no gradient of {name}")));
    let numeric: Vec<f64> = (0..gradient.len())
        .map(|at| {
            let difference =
                forward(with_value(value, at, step)) - forward(with_value(value, at, -step));
            difference / (2.0 * f64::from(step))
        })
        .collect();
    assert!(
        gradient.iter().any(|g| g.abs() > 1e-3),
        "{name}: {gradient:?}"
    );
    let error = relative_error(&gradient, &numeric);
    assert!(
        error < 5e-3,
        "{name}: relative error {error}\n{gradient:?}\n{numeric:?}"
    );
}

fn check(config: &FusedMoeConfig) {
    let device = Device::flex();
    let mut plain = config.init(&device).unwrap();
    // Logits far enough apart that no finite step changes the choice.
    let gate = plain.gate.weight.val() * 3.0;
    plain.gate.weight = Param::from_tensor(gate);
    let x = tensor(noise(T, H, 21), H, &device);

    let mut layer = plain.clone();
    let param = |t: Tensor<3>| Param::from_tensor(t.autodiff());
    layer.gate.weight = Param::from_tensor(plain.gate.weight.val().autodiff());
    let source = trainable(&plain.experts);
    let mut experts = source.clone();
    experts.w13 = param(source.w13.val());
    experts.w2 = param(source.w2.val());
    layer.experts = Experts::Trainable(experts);
    let input = x.clone().autodiff().require_grad();
    let output = layer.forward(input.clone()).unwrap();
    let factors = tensor(noise(T, H, 77), H, &device);
    let gradients = (output * factors.autodiff()).sum().backward();

    let run = |layer: &FusedMoe, x: Tensor<2>| objective(&values(layer.forward(x).unwrap()));
    compare("input", input.grad(&gradients), &x, |x| run(&plain, x));
    let gate = layer.gate.weight.val().grad(&gradients);
    compare("gate", gate, &plain.gate.weight.val(), |weight| {
        let mut layer = plain.clone();
        layer.gate.weight = Param::from_tensor(weight);
        run(&layer, x.clone())
    });
    let trained = trainable(&layer.experts);
    compare(
        "w13",
        trained.w13.val().grad(&gradients),
        &source.w13.val(),
        |w13| {
            let mut layer = plain.clone();
            let mut experts = source.clone();
            experts.w13 = Param::from_tensor(w13);
            layer.experts = Experts::Trainable(experts);
            run(&layer, x.clone())
        },
    );
    compare(
        "w2",
        trained.w2.val().grad(&gradients),
        &source.w2.val(),
        |w2| {
            let mut layer = plain.clone();
            let mut experts = source.clone();
            experts.w2 = Param::from_tensor(w2);
            layer.experts = Experts::Trainable(experts);
            run(&layer, x.clone())
        },
    );
}

fn config() -> FusedMoeConfig {
    FusedMoeConfig::new(H, 5, 4, 2).with_seed(3)
}

#[test]
fn softmax_and_swiglu() {
    check(&config());
    check(&config().with_renormalize(true));
}

#[test]
fn sigmoid_top_k_first_with_oai_activation_and_gated_shared_experts() {
    let mut router = RouterSpec::new("w");
    router.scoring = ScoringFunction::Sigmoid;
    router.selection = TopKSelection::TopKThenScores;
    router.routed_scaling_factor = 1.5;
    let oai = Activation::SwigluOai {
        alpha: 1.702,
        beta: 1.0,
        limit: None,
    };
    let config = config()
        .with_router(router)
        .with_activation(oai)
        .with_shared_experts(SharedExpertsConfig::new(7).with_gate(true));
    check(&config);
}

#[test]
fn sparsemixer_and_weight_on_input() {
    let mut router = RouterSpec::new("w");
    router.selection = TopKSelection::SparseMixer { epsilon: 10.0 };
    check(&config().with_router(router.clone()));
    router.selection = TopKSelection::ScoresThenTopK;
    router.weight_on_input = true;
    check(&config().with_router(router));
}

/// Training by Burn's own switch: parameters of the whole module.
#[test]
fn a_module_in_training_has_gradients_even_if_the_input_has_none() {
    use burn::module::Module;
    let device = Device::flex();
    let layer = config().init(&device).unwrap().train();
    let output = layer.forward(tensor(noise(T, H, 2), H, &device)).unwrap();
    let gradients = output.sum().backward();
    assert!(layer.gate.weight.val().grad(&gradients).is_some());
    assert!(
        trainable(&layer.experts)
            .w2
            .val()
            .grad(&gradients)
            .is_some()
    );
    let frozen = layer.valid();
    assert!(
        !frozen
            .forward(tensor(noise(T, H, 2), H, &device))
            .unwrap()
            .is_autodiff()
    );
}
