//! Emulated quantization of activations: routed and shared experts, by either path, on one rank
//! and on many.

use std::sync::Arc;

use burn::tensor::Device;
use bytes::Bytes;
use moekit_fused_moe::*;
use moekit_quant::{
    ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights,
    PackedMatrix, RouterSpec,
};
use moekit_routing::{Placement, RoutingTable, RoutingTableProvider, Topology};

use crate::common::ranks::run_ranks;
use crate::common::*;

const H: usize = 40;
const I: usize = 48;
const E: usize = 5;
const K: usize = 2;
/// Shared experts: one MLP of their widths together.
const S: usize = 2;

const F8: ActivationFormat = ActivationFormat::F8E4M3;
const PER_TOKEN: ActivationQuant = ActivationQuant::PerToken { format: F8 };

/// Schemes of gate, up and down.
type Schemes = [Option<ActivationQuant>; 3];

fn per_group(group_size: usize) -> ActivationQuant {
    ActivationQuant::PerGroup {
        format: F8,
        group_size,
        power_of_two: false,
    }
}

fn schemes() -> Vec<Schemes> {
    let format = ActivationFormat::I8;
    let fixed = |scale| ActivationQuant::Static { format, scale };
    let nvfp4 = |scale| ActivationQuant::Nvfp4 { scale };
    let mx = |format| ActivationQuant::Mx { format };
    vec![
        [fixed(0.02), fixed(0.02), fixed(0.03)].map(Some),
        [fixed(0.02), fixed(0.03), fixed(0.01)].map(Some),
        [PER_TOKEN; 3].map(Some),
        [per_group(24); 3].map(Some),
        [mx(F8); 3].map(Some),
        [mx(ActivationFormat::F4E2M1); 3].map(Some),
        [nvfp4(0.001), nvfp4(0.001), nvfp4(0.002)].map(Some),
        [None, Some(PER_TOKEN), None],
        [Some(PER_TOKEN), None, Some(per_group(16))],
    ]
}

/// `[rows, cols]`
#[derive(Clone)]
struct Linear {
    cols: usize,
    weights: Vec<f32>,
    quant: Option<ActivationQuant>,
}

impl Linear {
    fn new(rows: usize, cols: usize, seed: u32, quant: Option<ActivationQuant>) -> Self {
        let weights = noise(rows, cols, seed).iter().map(|w| w * 0.3).collect();
        Self {
            cols,
            weights,
            quant,
        }
    }

    fn forward(&self, x: &[f32]) -> Vec<f64> {
        let mut x = x.to_vec();
        if let Some(quant) = self.quant {
            quant.apply(&mut x);
        }
        let product = |(&w, &x): (&f32, &f32)| f64::from(w) * f64::from(x);
        let rows = self.weights.chunks_exact(self.cols);
        rows.map(|w| w.iter().zip(&x).map(product).sum()).collect()
    }

    fn packed(&self) -> ExpertLinear {
        let codes: Bytes = self.weights.iter().flat_map(|w| w.to_le_bytes()).collect();
        let shape = [self.weights.len() / self.cols, self.cols];
        let matrix = PackedMatrix::contiguous(CodeFormat::F32, shape, codes).unwrap();
        let mut linear = ExpertLinear::new(matrix);
        linear.input_quant = self.quant;
        linear
    }
}

#[derive(Clone)]
struct Mlp([Linear; 3]);

impl Mlp {
    fn new(width: usize, seed: u32, [gate, up, down]: Schemes) -> Self {
        Self([
            Linear::new(width, H, seed, gate),
            Linear::new(width, H, seed + 1, up),
            Linear::new(H, width, seed + 2, down),
        ])
    }

    fn forward(&self, x: &[f32]) -> Vec<f64> {
        let [gate, up, down] = &self.0;
        let inner = gate.forward(x).into_iter().zip(up.forward(x));
        let inner: Vec<f32> = inner.map(|(g, u)| silu_mul(g, u) as f32).collect();
        down.forward(&inner)
    }

    fn packed(&self) -> Arc<ExpertMlp> {
        let [gate, up, down] = self.0.each_ref().map(Linear::packed);
        Arc::new(ExpertMlp::new(Some(gate), up, down).unwrap())
    }

    /// Some of the intermediate features.
    fn part(&self, first: usize, width: usize) -> Self {
        let mut part = self.clone();
        let [gate, up, down] = &mut part.0;
        for linear in [gate, up] {
            linear.weights = linear.weights[first * H..(first + width) * H].to_vec();
        }
        let columns = |row: &[f32]| row[first..first + width].to_vec();
        let rows = down.weights.chunks_exact(down.cols);
        (down.weights, down.cols) = (rows.flat_map(columns).collect(), width);
        part
    }
}

#[derive(Debug)]
struct Fixed(Arc<RoutingTable>);

impl RoutingTableProvider for Fixed {
    fn snapshot(&self) -> Arc<RoutingTable> {
        self.0.clone()
    }
}

fn table(ranks: &[Vec<usize>], num_fused: usize) -> Arc<Fixed> {
    let placement = Placement::from_ranks(E, ranks).unwrap();
    let topology = Topology::new(ranks.len()).unwrap();
    let table = RoutingTable::new(placement, topology, num_fused, 0).unwrap();
    Arc::new(Fixed(Arc::new(table)))
}

/// A layer in plain loops.
struct Reference {
    experts: Vec<Mlp>,
    shared: Option<Mlp>,
    on_input: bool,
}

impl Reference {
    fn new(schemes: Schemes) -> Self {
        let expert = |e: usize| Mlp::new(I, 10 * e as u32 + 1, schemes);
        Self {
            experts: (0..E).map(expert).collect(),
            shared: None,
            on_input: false,
        }
    }

    fn with_shared(mut self, width: usize, schemes: Schemes) -> Self {
        self.shared = Some(Mlp::new(width, 500, schemes));
        self
    }

    fn config(&self) -> FusedMoeConfig {
        let mut router = RouterSpec::new("w");
        router.renormalize = true;
        router.weight_on_input = self.on_input;
        let config = FusedMoeConfig::new(H, I, E, K)
            .with_router(router)
            .with_activation_quant(ActivationQuantMode::Emulate);
        match &self.shared {
            Some(mlp) => {
                let num = mlp.0[2].cols / I;
                let shared = SharedExpertsConfig::new(mlp.0[2].cols).with_num_experts(num);
                config.with_shared_experts(shared.with_scaling(0.5))
            }
            None => config,
        }
    }

    /// The layer over the packed experts of a rank.
    fn layer(
        &self,
        config: &FusedMoeConfig,
        local: &[usize],
        num_fused: usize,
    ) -> Result<FusedMoe, FusedMoeError> {
        let mut experts: Vec<_> = local.iter().map(|&e| self.experts[e].packed()).collect();
        let parts = (0..num_fused).flat_map(|s| self.shared.as_ref().map(|mlp| mlp.part(s * I, I)));
        experts.extend(parts.map(|part| part.packed()));
        let mut weights = ExpertWeights::new(H, I, experts).unwrap();
        if let (Some(mlp), 0) = (&self.shared, num_fused) {
            weights = weights.with_shared(mlp.packed()).unwrap();
        }
        let gate = GateTensors::new(noise(E, H, 900));
        config.init_packed(gate, Arc::new(weights), &Device::flex())
    }

    fn one_rank(
        &self,
        config: &FusedMoeConfig,
        num_fused: usize,
    ) -> Result<FusedMoe, FusedMoeError> {
        let all: Vec<usize> = (0..E).collect();
        let table = table(std::slice::from_ref(&all), num_fused);
        self.layer(&config.clone().with_routing(table), &all, num_fused)
    }

    /// What the layer gives for the experts that the gate chose.
    fn output(&self, x: &[f32], got: &FusedMoeOutput) -> Vec<f64> {
        let mut output = vec![0.0; x.len()];
        let chosen = got.topk_ids.chunks(K).zip(got.topk_weights.chunks(K));
        for ((x, y), (ids, weights)) in x.chunks(H).zip(output.chunks_mut(H)).zip(chosen) {
            let mut add = |mlp: &Mlp, x: &[f32], weight: f64| {
                let terms = mlp.forward(x);
                y.iter_mut().zip(terms).for_each(|(y, t)| *y += weight * t);
            };
            for (&id, &weight) in ids.iter().zip(weights) {
                let expert = &self.experts[id as usize];
                match self.on_input {
                    true => add(
                        expert,
                        &x.iter().map(|x| x * weight).collect::<Vec<_>>(),
                        1.0,
                    ),
                    false => add(expert, x, f64::from(weight)),
                }
            }
            if let Some(shared) = &self.shared {
                add(shared, x, 0.5);
            }
        }
        output
    }

    fn check(&self, layer: &FusedMoe, x: &[f32]) {
        let hidden = tensor(x.to_vec(), H, &Device::flex());
        let got = layer
            .forward_detailed(hidden, ForwardOptions::new())
            .unwrap();
        let expected = self.output(x, &got);
        assert_near(&values(got.output), &expected, 1e-5);
    }
}

fn tokens(rank: usize) -> Vec<f32> {
    noise(5 + rank, H, 700 + rank as u32)
}

const PATHS: [Compute; 2] = [Compute::Auto, Compute::TensorOps];

#[test]
fn packed_experts_follow_their_schemes() {
    for schemes in schemes() {
        for on_input in [false, true] {
            let mut reference = Reference::new(schemes);
            reference.on_input = on_input;
            for compute in PATHS {
                let config = reference.config().with_compute(compute);
                reference.check(&reference.one_rank(&config, 0).unwrap(), &tokens(0));
            }
        }
    }
}

#[test]
fn off_is_the_default_and_looks_at_no_scheme() {
    for compute in PATHS {
        let output = |schemes: Schemes, mode: Option<ActivationQuantMode>| {
            let reference = Reference::new(schemes).with_shared(I, schemes);
            let config = FusedMoeConfig::new(H, I, E, K)
                .with_shared_experts(SharedExpertsConfig::new(I))
                .with_compute(compute);
            let config = match mode {
                Some(mode) => config.with_activation_quant(mode),
                None => config,
            };
            let layer = reference.one_rank(&config, 0).unwrap();
            let output = layer.forward(tensor(tokens(0), H, &Device::flex()));
            let bits = |v: f32| v.to_bits();
            values(output.unwrap())
                .into_iter()
                .map(bits)
                .collect::<Vec<_>>()
        };
        let weights_only = output([None; 3], None);
        let emulate = Some(ActivationQuantMode::Emulate);
        for mode in [None, Some(ActivationQuantMode::Off)] {
            assert_eq!(output([Some(PER_TOKEN); 3], mode), weights_only);
        }
        assert_eq!(output([None; 3], emulate), weights_only);
        assert_ne!(output([Some(PER_TOKEN); 3], emulate), weights_only);
    }
}

#[test]
fn shared_experts_follow_their_schemes_apart_and_fused() {
    for schemes in schemes() {
        for compute in PATHS {
            // The schemes of shared experts are not those of routed ones.
            let routed = [None, None, Some(per_group(8))];
            let one = Reference::new(routed).with_shared(I, schemes);
            let config = one.config().with_compute(compute);
            for num_fused in [0, 1] {
                one.check(&one.one_rank(&config, num_fused).unwrap(), &tokens(1));
            }
            let wide = Reference::new(routed).with_shared(S * I, schemes);
            let config = wide.config().with_compute(compute);
            wide.check(&wide.one_rank(&config, 0).unwrap(), &tokens(1));
            // Two experts of 48 features cut groups of 32 and rows, not those of 16 and 24.
            let fused = wide.one_rank(&config, S);
            match schemes[2] {
                Some(ActivationQuant::PerToken { .. } | ActivationQuant::Mx { .. }) => {
                    let message = fused.unwrap_err().to_string();
                    assert!(message.contains("`Emulate`"), "{message}");
                    assert!(message.contains("fused shared experts"), "{message}");
                }
                _ => wide.check(&fused.unwrap(), &tokens(1)),
            }
        }
    }
}

#[test]
fn experts_that_come_later_are_checked_too() {
    let fits = Reference::new([None; 3]).with_shared(S * I, [Some(per_group(16)); 3]);
    let cut = Reference::new([None; 3]).with_shared(S * I, [Some(per_group(32)); 3]);
    let off = cut.config().with_activation_quant(ActivationQuantMode::Off);
    let mut layer = fits.one_rank(&fits.config(), S).unwrap();
    layer.experts = cut.one_rank(&off, S).unwrap().experts;
    let error = layer.forward(tensor(tokens(0), H, &Device::flex()));
    let message = error.unwrap_err().to_string();
    assert!(message.contains("fused shared experts"), "{message}");
}

/// Every rank's output is that of the whole layer.
fn check_ranks(reference: &Reference, config: &FusedMoeConfig, num_fused: usize) {
    for ranks in [
        vec![vec![0, 1, 2], vec![3, 4]],
        vec![vec![4, 0], vec![], vec![2, 1], vec![3, 0]],
    ] {
        let table = table(&ranks, num_fused);
        run_ranks(ranks.len(), |rank, mailbox| {
            let config = config
                .clone()
                .with_routing(table.clone())
                .with_dispatcher(mailbox);
            let layer = reference.layer(&config, &ranks[rank], num_fused).unwrap();
            reference.check(&layer, &tokens(rank));
        });
    }
}

#[test]
fn ranks_do_not_matter() {
    for schemes in schemes() {
        let reference = Reference::new(schemes).with_shared(I, schemes);
        for compute in PATHS {
            for num_fused in [0, 1] {
                check_ranks(
                    &reference,
                    &reference.config().with_compute(compute),
                    num_fused,
                );
            }
        }
    }
}

/// A shard begins where a group of features does that shares a scale.
#[test]
fn sharded_shared_experts_follow_their_schemes() {
    for schemes in schemes() {
        let reference = Reference::new([None; 3]).with_shared(5 * I, schemes);
        for compute in PATHS {
            let config = reference.config().with_compute(compute);
            let config = config.with_sharded_shared_experts(true);
            if schemes[2] != Some(PER_TOKEN) {
                check_ranks(&reference, &config, 0);
                continue;
            }
            let ranks = [vec![0, 1, 2], vec![3, 4]];
            let config = config.with_routing(table(&ranks, 0));
            let errors = run_ranks(2, |rank, mailbox| {
                let config = config.clone().with_dispatcher(mailbox);
                reference
                    .layer(&config, &ranks[rank], 0)
                    .unwrap_err()
                    .to_string()
            });
            for message in errors {
                assert!(message.contains("`Emulate`"), "{message}");
                assert!(message.contains("sharded shared experts"), "{message}");
            }
        }
    }
}

#[test]
fn rounding_has_no_gradient() {
    let hidden = || {
        tensor(tokens(0), H, &Device::flex())
            .autodiff()
            .require_grad()
    };
    let reference = Reference::new([Some(PER_TOKEN); 3]);
    let layer = reference.one_rank(&reference.config(), 0).unwrap();
    let message = layer.forward(hidden()).unwrap_err().to_string();
    assert!(message.contains("autodiff is enabled"), "{message}");
    assert!(message.contains("`Emulate`"), "{message}");
    // Without anything to round there are gradients.
    let reference = Reference::new([None; 3]);
    let layer = reference.one_rank(&reference.config(), 0).unwrap();
    let input = hidden();
    let gradients = layer.forward(input.clone()).unwrap().sum().backward();
    assert!(input.grad(&gradients).is_some());
}

/// The same row gives the same bits alone and in a batch.
#[test]
fn a_token_does_not_depend_on_its_batch() {
    let device = Device::flex();
    for schemes in schemes() {
        let reference = Reference::new(schemes).with_shared(I, schemes);
        let layer = reference.one_rank(&reference.config(), 0).unwrap();
        let x = tokens(4);
        let whole = values(layer.forward(tensor(x.clone(), H, &device)).unwrap());
        for (row, expected) in x.chunks(H).zip(whole.chunks(H)) {
            let alone = layer.forward(tensor(row.to_vec(), H, &device)).unwrap();
            assert_eq!(values(alone), expected);
        }
    }
}
