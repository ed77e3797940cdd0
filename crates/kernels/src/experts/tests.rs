use half::bf16;
use moekit_quant::{CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights};
use proptest::prelude::*;

use super::*;
use crate::test_weights::Noise;
use crate::{Isa, PreparedExperts, RouterWeight, Rows, dequantize};

const OAI: Activation = Activation::SwigluOai {
    alpha: 1.702,
    beta: 1.0,
    limit: Some(1.5),
};

/// A kernel for each instruction set that the machine has.
fn kernels() -> Vec<CpuKernel> {
    let kernel = |isa| CpuKernel::default().with_isa(isa).unwrap();
    Isa::available().into_iter().map(kernel).collect()
}

fn prepared(weights: &ExpertWeights) -> PreparedExperts {
    PreparedExperts::new(weights.clone()).unwrap()
}

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
    assert_within(2e-5, got, expected);
}

fn assert_within(tolerance: f64, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len());
    let size = expected.iter().fold(1e-6_f64, |m, e| m.max(e.abs()));
    for (got, want) in got.iter().zip(expected) {
        assert!(
            (f64::from(*got) - want).abs() <= tolerance * size,
            "{got} {want} of {size}"
        );
    }
}

/// A batch whose slots name experts `-1..num`, or all the same one.
#[derive(Clone)]
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
                let expected = case.expected(&experts, activation, on_input);
                let ordered = prepared(&experts);
                for kernel in kernels() {
                    let got = kernel.experts(&ordered, activation, &batch).unwrap();
                    assert_near(&got, &expected);
                    // The order of the weights changes nothing for rows in `f32`.
                    let plain = kernel.experts(&experts, activation, &batch).unwrap();
                    assert_eq!(bits(&plain), bits(&got));
                }
            }
        }
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Which row it is does not depend on how many are computed at a time.
#[test]
fn an_unknown_id_is_told_with_its_row() {
    let mut noise = Noise::new(6);
    let experts = prepared(&noise.experts([2, 8, 8], true, false));
    let mut case = Case::new(&mut noise, 7, 8, 1, 2);
    case.ids[5] = 2;
    let batch = ExpertBatch::new(&case.x[..], 8, &case.ids, &case.weights, 1).unwrap();
    for rows in [1, 3, 100] {
        let error = CpuKernel::default().experts_by_rows((&experts).into(), OAI, &batch, rows);
        assert!(
            matches!(error, Err(KernelError::LocalId { row: 5, .. })),
            "{error:?}"
        );
    }
}

/// The same row gives the same bits alone and in any batch, on any number of threads: on every
/// instruction set, for rows of either type, for experts with one row and with several tiles.
#[test]
fn batch_and_threads_do_not_matter() {
    const ROWS: usize = 512;
    let mut noise = Noise::new(5);
    let experts = prepared(&noise.experts([5, 40, 72], true, true));
    let mut case = Case::new(&mut noise, ROWS, 40, 2, 5);
    // Many rows for one expert.
    case.ids.iter_mut().step_by(3).for_each(|id| *id = 1);
    let narrow: Vec<bf16> = case.x.iter().map(|&x| bf16::from_f32(x)).collect();
    let batch = |rows: std::ops::Range<usize>, is_narrow: bool| {
        let values = rows.start * 40..rows.end * 40;
        let hidden = match is_narrow {
            true => Rows::Bf16(&narrow[values]),
            false => Rows::F32(&case.x[values]),
        };
        let slots = rows.start * 2..rows.end * 2;
        ExpertBatch::new(
            hidden,
            40,
            &case.ids[slots.clone()],
            &case.weights[slots],
            2,
        )
        .unwrap()
    };
    for isa in Isa::available() {
        let one = CpuKernel::with_threads(1).unwrap().with_isa(isa).unwrap();
        for is_narrow in [false, true] {
            let whole = one
                .experts(&experts, OAI, &batch(0..ROWS, is_narrow))
                .unwrap();
            for threads in [2, 3, 8] {
                let kernel = CpuKernel::with_threads(threads).unwrap();
                assert_eq!(kernel.num_threads(), threads);
                let kernel = kernel.with_isa(isa).unwrap();
                let got = kernel.experts(&experts, OAI, &batch(0..ROWS, is_narrow));
                assert_eq!(bits(&got.unwrap()), bits(&whole));
            }
            for rows in [0, 1, 100] {
                let set = (&experts).into();
                let got = one.experts_by_rows(set, OAI, &batch(0..ROWS, is_narrow), rows);
                assert_eq!(bits(&got.unwrap()), bits(&whole));
            }
            for parts in [1, 17, 61] {
                for first in (0..ROWS).step_by(parts) {
                    let rows = first..ROWS.min(first + parts);
                    let got = one.experts(&experts, OAI, &batch(rows.clone(), is_narrow));
                    let expected = &whole[rows.start * 40..rows.end * 40];
                    assert_eq!(bits(&got.unwrap()), bits(expected), "{isa} rows {rows:?}");
                }
            }
        }
    }
}

/// More rows for one expert than are packed at a time, more features than a block has.
#[test]
fn large_sizes_equal_the_formula() {
    let mut noise = Noise::new(12);
    for format in [CodeFormat::F32, CodeFormat::BF16, CodeFormat::I8] {
        let [gate, up] =
            [(); 2].map(|()| ExpertLinear::new(noise.matrix(format, [70, 1100], false)));
        let down = ExpertLinear::new(noise.matrix(format, [1100, 70], true));
        let expert = ExpertMlp::new(Some(gate), up, down).unwrap();
        let experts = ExpertWeights::new(1100, 70, vec![expert.into()]).unwrap();
        let mut case = Case::new(&mut noise, 200, 1100, 1, 1);
        case.ids.fill(0);
        let ordered = prepared(&experts);
        let all: Vec<_> = kernels()
            .iter()
            .map(|k| {
                k.experts(&ordered, Activation::SILU, &case.batch())
                    .unwrap()
            })
            .collect();
        for row in [0, 99, 199] {
            let values = row * 1100..(row + 1) * 1100;
            let weight = case.weights[row];
            let x = &case.x[values.clone()];
            let expected = term(&experts.experts[0], Activation::SILU, x, weight, false);
            for got in &all {
                assert_near(&got[values.clone()], &expected);
            }
        }
    }
}

#[test]
fn slots_add_up_to_the_sum_bit_by_bit() {
    let mut noise = Noise::new(6);
    let experts = prepared(&noise.experts([5, 17, 9], true, false));
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

/// Rows in bf16 meet weights of bf16 in bf16 products, any others as the `f32` they stand for.
#[test]
fn bf16_rows_are_their_f32_values() {
    let mut noise = Noise::new(7);
    let experts = noise.experts([8, 33, 12], true, true);
    let mut case = Case::new(&mut noise, 6, 33, 2, 8);
    let narrow: Vec<bf16> = case.x.iter().map(|&x| bf16::from_f32(x)).collect();
    case.x = narrow.iter().map(|x| x.to_f32()).collect();
    let batch = ExpertBatch::new(Rows::Bf16(&narrow), 33, &case.ids, &case.weights, 2).unwrap();
    let ordered = prepared(&experts);
    for kernel in kernels() {
        let wide = kernel.experts(&experts, OAI, &case.batch()).unwrap();
        assert_eq!(
            bits(&kernel.experts(&experts, OAI, &batch).unwrap()),
            bits(&wide)
        );
        let got = kernel.experts(&ordered, OAI, &batch).unwrap();
        assert_within(4e-3, &got, &case.expected(&experts, OAI, false));
    }
}

#[test]
fn a_nan_stays_in_its_row() {
    let mut noise = Noise::new(8);
    let experts = prepared(&noise.experts([2, 8, 8], true, false));
    let mut case = Case::new(&mut noise, 3, 8, 1, 2);
    case.ids.fill(1);
    for kernel in kernels() {
        let mut case = case.clone();
        let clean = kernel
            .experts(&experts, Activation::SILU, &case.batch())
            .unwrap();
        case.x[8..16].fill(f32::NAN);
        let got = kernel
            .experts(&experts, Activation::SILU, &case.batch())
            .unwrap();
        assert!(got[8..16].iter().all(|v| v.is_nan()));
        assert_eq!((&got[..8], &got[16..]), (&clean[..8], &clean[16..]));
    }
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
    assert!(PreparedExperts::new(broken).is_err());
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
        let ordered = prepared(&experts);
        let expected = case.expected(&experts, Activation::SILU, false);
        for kernel in kernels() {
            let got = kernel.experts(&ordered, Activation::SILU, &case.batch()).unwrap();
            assert_near(&got, &expected);
        }
    }
}

mod activation_quant;
