use half::bf16;
use proptest::prelude::*;

use super::*;
use crate::Rows;
use crate::dequantize;
use crate::test_weights::Noise;

const OAI: Activation = Activation::SwigluOai {
    alpha: 1.702,
    beta: 1.0,
    limit: Some(1.5),
};

fn linear(linear: &ExpertLinear, x: &[f64]) -> Vec<f64> {
    let weights = dequantize(&linear.weight);
    let product = |(row, w): (usize, &[f32])| {
        let sum: f64 = w.iter().zip(x).map(|(&w, x)| f64::from(w) * x).sum();
        sum + linear.bias.as_ref().map_or(0.0, |b| f64::from(b[row]))
    };
    weights
        .chunks_exact(x.len())
        .enumerate()
        .map(product)
        .collect()
}

/// One slot in double precision, except for the activation itself.
fn term(expert: &ExpertMlp, activation: Activation, x: &[f32], w: f32, on_input: bool) -> Vec<f64> {
    let (before, after) = if on_input { (w, 1.0) } else { (1.0, w) };
    let x: Vec<f64> = x
        .iter()
        .map(|&x| f64::from(x) * f64::from(before))
        .collect();
    let up = linear(&expert.up, &x);
    let gate = expert
        .gate
        .as_ref()
        .map_or(vec![0.0; up.len()], |gate| linear(gate, &x));
    let inner = gate.iter().zip(&up);
    let inner: Vec<f64> = inner
        .map(|(&g, &u)| f64::from(activation.apply(g as f32, u as f32)))
        .collect();
    linear(&expert.down, &inner)
        .iter()
        .map(|y| y * f64::from(after))
        .collect()
}

fn assert_near(got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1e-6_f64, |m, e| m.max(e.abs()));
    for (got, want) in got.iter().zip(expected) {
        assert!(
            (f64::from(*got) - want).abs() <= 2e-5 * size,
            "{got} {want} of {size}"
        );
    }
}

/// A batch whose slots name experts `-1..num`, or all the same one.
struct Case {
    x: Vec<f32>,
    ids: Vec<i64>,
    weights: Vec<f32>,
    hidden: usize,
    top_k: usize,
}

impl Case {
    fn new(noise: &mut Noise, rows: usize, hidden: usize, top_k: usize, num: usize) -> Self {
        Self {
            x: noise.units(rows * hidden),
            ids: (0..rows * top_k)
                .map(|_| (noise.bits() % (num as u64 + 1)) as i64 - 1)
                .collect(),
            weights: noise.units(rows * top_k),
            hidden,
            top_k,
        }
    }

    fn batch(&self) -> ExpertBatch<'_> {
        ExpertBatch::new(
            &self.x[..],
            self.hidden,
            &self.ids,
            &self.weights,
            self.top_k,
        )
        .unwrap()
    }

    fn expected(
        &self,
        experts: &ExpertWeights,
        activation: Activation,
        on_input: bool,
    ) -> Vec<f64> {
        let mut out = vec![0.0; self.x.len()];
        for (slot, &id) in self.ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
            let row = slot / self.top_k * self.hidden..(slot / self.top_k + 1) * self.hidden;
            let expert = &experts.experts[id as usize];
            let term = term(
                expert,
                activation,
                &self.x[row.clone()],
                self.weights[slot],
                on_input,
            );
            out[row].iter_mut().zip(term).for_each(|(o, t)| *o += t);
        }
        out
    }
}

#[test]
fn every_format_activation_and_bias_equals_the_formula() {
    let mut noise = Noise::new(3);
    let limit = Some(0.8);
    for activation in [
        Activation::SILU,
        Activation::Silu { limit },
        Activation::Gelu { limit: None },
        Activation::Gelu { limit },
        Activation::GeluTanh { limit: None },
        Activation::GeluTanh { limit },
        OAI,
        Activation::SwigluStep { limit: 0.3 },
        Activation::SiluNoMul,
        Activation::GeluNoMul,
        Activation::GeluTanhNoMul,
        Activation::Relu2NoMul,
    ] {
        for bias in [false, true] {
            let experts = noise.experts([8, 24, 20], activation.is_gated(), bias);
            let case = Case::new(&mut noise, 11, 24, 3, 8);
            for on_input in [false, true] {
                let place = if on_input {
                    RouterWeight::OnInput
                } else {
                    RouterWeight::OnOutput
                };
                let batch = case.batch().with_router_weight(place);
                let got = CpuKernel::default()
                    .experts(&experts, activation, &batch)
                    .unwrap();
                assert_near(&got, &case.expected(&experts, activation, on_input));
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The same row gives the same bits alone and in any batch, on any number of threads.
#[test]
fn batch_and_threads_do_not_matter() {
    let mut noise = Noise::new(5);
    let experts = noise.experts([5, 40, 72], true, true);
    let case = Case::new(&mut noise, 33, 40, 2, 5);
    let one = CpuKernel::with_threads(1).unwrap();
    let whole = one.experts(&experts, OAI, &case.batch()).unwrap();
    for threads in [2, 3, 8] {
        let kernel = CpuKernel::with_threads(threads).unwrap();
        assert_eq!(kernel.num_threads(), threads);
        let got = kernel.experts(&experts, OAI, &case.batch()).unwrap();
        assert_eq!(bits(&got), bits(&whole));
    }
    for row in 0..33 {
        let (x, ids) = (&case.x[row * 40..][..40], &case.ids[row * 2..][..2]);
        let batch = ExpertBatch::new(x, 40, ids, &case.weights[row * 2..][..2], 2).unwrap();
        let got = one.experts(&experts, OAI, &batch).unwrap();
        assert_eq!(bits(&got), bits(&whole[row * 40..][..40]), "row {row}");
    }
}

#[test]
fn slots_add_up_to_the_sum_bit_by_bit() {
    let mut noise = Noise::new(6);
    let experts = noise.experts([5, 17, 9], true, false);
    let case = Case::new(&mut noise, 13, 17, 4, 5);
    let kernel = CpuKernel::default();
    let summed = kernel.experts(&experts, OAI, &case.batch()).unwrap();
    let slots = kernel
        .experts_per_slot(&experts, OAI, &case.batch())
        .unwrap();
    let mut sums = vec![0.0_f32; summed.len()];
    for (sum, slots) in sums.chunks_exact_mut(17).zip(slots.chunks_exact(4 * 17)) {
        for values in slots.chunks_exact(17) {
            sum.iter_mut().zip(values).for_each(|(s, v)| *s += v);
        }
    }
    assert_eq!(bits(&sums), bits(&summed));
    for (slot, values) in slots.chunks_exact(17).enumerate() {
        assert_eq!(
            case.ids[slot] < 0,
            values.iter().all(|&v| v == 0.0),
            "slot {slot}"
        );
    }
}

#[test]
fn bf16_rows_give_the_bits_of_their_f32_values() {
    let mut noise = Noise::new(7);
    let experts = noise.experts([3, 33, 12], true, true);
    let mut case = Case::new(&mut noise, 6, 33, 2, 3);
    let narrow: Vec<bf16> = case.x.iter().map(|&x| bf16::from_f32(x)).collect();
    case.x = narrow.iter().map(|x| x.to_f32()).collect();
    let kernel = CpuKernel::default();
    let wide = kernel.experts(&experts, OAI, &case.batch()).unwrap();
    let batch = ExpertBatch::new(Rows::Bf16(&narrow), 33, &case.ids, &case.weights, 2).unwrap();
    assert_eq!(
        bits(&kernel.experts(&experts, OAI, &batch).unwrap()),
        bits(&wide)
    );
}

#[test]
fn a_nan_stays_in_its_row() {
    let mut noise = Noise::new(8);
    let experts = noise.experts([2, 8, 8], true, false);
    let mut case = Case::new(&mut noise, 3, 8, 1, 2);
    case.ids.fill(1);
    let clean = CpuKernel::default()
        .experts(&experts, Activation::SILU, &case.batch())
        .unwrap();
    case.x[8..16].fill(f32::NAN);
    let got = CpuKernel::default()
        .experts(&experts, Activation::SILU, &case.batch())
        .unwrap();
    assert!(got[8..16].iter().all(|v| v.is_nan()));
    assert_eq!((&got[..8], &got[16..]), (&clean[..8], &clean[16..]));
}

#[test]
fn nothing_to_do() {
    let mut noise = Noise::new(9);
    let experts = noise.experts([2, 8, 8], true, false);
    let kernel = CpuKernel::default();
    let no_rows = ExpertBatch::new(&[0.0_f32; 0][..], 8, &[], &[], 3).unwrap();
    assert!(kernel.experts(&experts, OAI, &no_rows).unwrap().is_empty());
    assert!(
        kernel
            .experts_per_slot(&experts, OAI, &no_rows)
            .unwrap()
            .is_empty()
    );
    let no_slots = ExpertBatch::new(&[1.0_f32; 16][..], 8, &[], &[], 0).unwrap();
    assert_eq!(kernel.experts(&experts, OAI, &no_slots).unwrap(), [0.0; 16]);
    let elsewhere = ExpertBatch::new(&[1.0_f32; 16][..], 8, &[-1, -7], &[1.0; 2], 1).unwrap();
    assert_eq!(
        kernel.experts(&experts, OAI, &elsewhere).unwrap(),
        [0.0; 16]
    );
    let no_experts = ExpertWeights::new(8, 8, vec![]).unwrap();
    assert_eq!(
        kernel.experts(&no_experts, OAI, &elsewhere).unwrap(),
        [0.0; 16]
    );
}

#[test]
fn misfits_are_refused() {
    let mut noise = Noise::new(10);
    let experts = noise.experts([2, 8, 6], true, true);
    let x = [1.0_f32; 8];
    let batch = ExpertBatch::new(&x[..], 8, &[0], &[1.0], 1).unwrap();
    let error = |experts: &ExpertWeights, activation, batch: &ExpertBatch<'_>| {
        CpuKernel::default()
            .experts(experts, activation, batch)
            .unwrap_err()
            .to_string()
    };
    let narrow = ExpertBatch::new(&x[..], 4, &[0, 0], &[1.0; 2], 1).unwrap();
    let message = error(&experts, OAI, &narrow);
    assert!(
        message.contains("columns of w13 has 8 elements, expected 4"),
        "{message}"
    );
    let message = error(&experts, Activation::Relu2NoMul, &batch);
    assert!(
        message.contains("expert 0 has a gate projection"),
        "{message}"
    );
    let ungated = noise.experts([1, 8, 6], false, false);
    let message = error(&ungated, OAI, &batch);
    assert!(
        message.contains("expert 0 has no gate projection"),
        "{message}"
    );
    let message = error(&experts, Activation::SwigluStep { limit: f32::NAN }, &batch);
    assert!(message.contains("NaN"), "{message}");
    // The fields of an expert are public, so that they may disagree.
    let mut broken = ExpertMlp::clone(&experts.experts[1]);
    broken.down.bias = Some(vec![0.0; 7]);
    let broken = ExpertWeights::new(8, 6, vec![broken.into()]).unwrap();
    let message = error(&broken, OAI, &batch);
    assert!(
        message.contains("bias has 7 elements, expected 8"),
        "{message}"
    );
    assert!(CpuKernel::with_threads(0).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Any sizes, any distribution of slots over experts of any format.
    #[test]
    fn any_shape_equals_the_formula(
        seed in 0_u64..1000,
        (num, hidden, width) in (1_usize..7, 1_usize..40, 1_usize..40),
        (rows, top_k) in (0_usize..9, 1_usize..5),
        one_expert: bool,
    ) {
        let mut noise = Noise::new(seed);
        let experts = noise.experts([num, hidden, width], true, seed % 2 == 0);
        let mut case = Case::new(&mut noise, rows, hidden, top_k, num);
        if one_expert {
            case.ids.fill(num as i64 - 1);
        }
        let kernel = CpuKernel::default();
        let got = kernel.experts(&experts, Activation::SILU, &case.batch()).unwrap();
        assert_near(&got, &case.expected(&experts, Activation::SILU, false));
    }
}

mod activation_quant;
