//! Emulated quantization of activations against number formats and schemes written out here.

use std::sync::Arc;

use moekit_quant::{ActivationFormat, ActivationQuant};

use super::super::activate::tests::activated;
use super::super::inputs::InputPlan;
use super::*;
use crate::ActivationQuantMode;
use crate::batch::Grouped;

const F8: ActivationFormat = ActivationFormat::F8E4M3;
const I8: ActivationFormat = ActivationFormat::I8;
const F4: ActivationFormat = ActivationFormat::F4E2M1;

/// Groups of which the last of a row is partial.
const SCHEMES: [ActivationQuant; 10] = [
    ActivationQuant::Static {
        format: F8,
        scale: 0.003,
    },
    ActivationQuant::Static {
        format: I8,
        scale: 0.01,
    },
    ActivationQuant::PerToken { format: F8 },
    ActivationQuant::PerToken { format: I8 },
    ActivationQuant::PerGroup {
        format: F8,
        group_size: 7,
        power_of_two: false,
    },
    ActivationQuant::PerGroup {
        format: F8,
        group_size: 16,
        power_of_two: true,
    },
    ActivationQuant::PerGroup {
        format: I8,
        group_size: 8,
        power_of_two: false,
    },
    ActivationQuant::Mx { format: F8 },
    ActivationQuant::Mx { format: F4 },
    ActivationQuant::Nvfp4 { scale: 0.0004 },
];

/// The magnitudes of a format in ascending order, and the values of integers from -128.
fn magnitudes(format: ActivationFormat) -> Vec<f64> {
    match format {
        ActivationFormat::F8E4M3 => (0..127)
            .map(|code| match (code >> 3, f64::from(code & 7)) {
                (0, mantissa) => mantissa / 8.0 / 64.0,
                (exponent, mantissa) => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
            })
            .collect(),
        ActivationFormat::I8 => (-128..128).map(f64::from).collect(),
        _ => vec![0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0],
    }
}

/// The nearest value of a format; of two that are as near, the one of even code.
fn nearest(format: ActivationFormat, magnitudes: &[f64], x: f32) -> f32 {
    let (sign, x) = match format {
        ActivationFormat::I8 => (1.0, f64::from(x)),
        _ => (f64::from(x).signum(), f64::from(x).abs()),
    };
    let codes = magnitudes.iter().copied().enumerate();
    let key = |value: f64, code: usize| ((value - x).abs(), code % 2);
    let best = codes.min_by(|a, b| key(a.1, a.0).partial_cmp(&key(b.1, b.0)).unwrap());
    (sign * best.unwrap().1) as f32
}

fn largest(x: &[f32]) -> f32 {
    x.iter().map(|v| v.abs()).fold(0.0, f32::max)
}

/// `s` under which the largest magnitude is the largest of the format.
fn fitting(format: ActivationFormat, x: &[f32]) -> f32 {
    let top = match format {
        ActivationFormat::F8E4M3 => 448.0,
        ActivationFormat::I8 => 255.0 / 2.0,
        _ => 6.0,
    };
    largest(x) / top
}

fn power_of_two_from(scale: f32) -> f32 {
    f64::from(scale).log2().ceil().exp2() as f32
}

fn scaled(format: ActivationFormat, scale: f32, x: &[f32]) -> Vec<f32> {
    let magnitudes = magnitudes(format);
    let value = |v: &f32| match scale {
        0.0 => 0.0,
        scale => nearest(format, &magnitudes, v / scale) * scale,
    };
    x.iter().map(value).collect()
}

/// One row under a scheme.
fn quantized(scheme: Option<ActivationQuant>, x: &[f32]) -> Vec<f32> {
    let groups = |size: usize, group: &dyn Fn(&[f32]) -> Vec<f32>| -> Vec<f32> {
        x.chunks(size).flat_map(group).collect()
    };
    let Some(scheme) = scheme else {
        return x.to_vec();
    };
    match scheme {
        ActivationQuant::Static { format, scale } => scaled(format, scale, x),
        ActivationQuant::PerToken { format } => scaled(format, fitting(format, x), x),
        ActivationQuant::PerGroup {
            format,
            group_size,
            power_of_two,
        } => groups(group_size, &|x| match power_of_two {
            true => scaled(format, power_of_two_from(fitting(format, x)), x),
            false => scaled(format, fitting(format, x), x),
        }),
        ActivationQuant::Mx {
            format: ActivationFormat::F4E2M1,
        } => groups(32, &|x| {
            let exponent = f64::from(largest(x)).log2().floor();
            let rounds_up = f64::from(largest(x)) >= 1.75 * exponent.exp2();
            let exponent = exponent + f64::from(u8::from(rounds_up)) - 2.0;
            scaled(F4, exponent.exp2() as f32, x)
        }),
        ActivationQuant::Mx { format } => groups(32, &|x| {
            scaled(format, power_of_two_from(fitting(format, x)), x)
        }),
        ActivationQuant::Nvfp4 { scale } => groups(16, &|x| {
            let group_scale = nearest(F8, &magnitudes(F8), fitting(F4, x) / scale);
            scaled(F4, group_scale * scale, x)
        }),
        other => panic!("{other:?} is not written out"),
    }
}

/// [`term`] with the input of each linear quantized.
///
/// The activation is that of the kernels, to the bit: where it is limited, the largest magnitude
/// of a row is a constant, and the scale that follows from it puts values into the middle of two
/// codes.
fn emulated(
    expert: &ExpertMlp,
    activation: Activation,
    x: &[f32],
    w: f32,
    on_input: bool,
) -> Vec<f64> {
    let wide = |x: Vec<f32>| -> Vec<f64> { x.into_iter().map(f64::from).collect() };
    let (before, after) = if on_input { (w, 1.0) } else { (1.0, w) };
    let x: Vec<f32> = x.iter().map(|x| x * before).collect();
    let product = |l: &ExpertLinear, x: &[f32]| linear(l, &wide(quantized(l.input_quant, x)));
    let up = product(&expert.up, &x);
    let gate = match &expert.gate {
        Some(gate) => product(gate, &x),
        None => vec![0.0; up.len()],
    };
    let inner = gate.iter().zip(&up);
    let inner: Vec<f32> = inner
        .map(|(&g, &u)| activated(Isa::Portable, activation, g as f32, u as f32))
        .collect();
    let output = product(&expert.down, &inner);
    output.iter().map(|y| y * f64::from(after)).collect()
}

fn expected(
    case: &Case,
    experts: &ExpertWeights,
    activation: Activation,
    on_input: bool,
) -> Vec<f64> {
    let mut out = vec![0.0; case.x.len()];
    for (slot, &id) in case.ids.iter().enumerate().filter(|(_, id)| **id >= 0) {
        let row = slot / case.top_k * case.hidden..(slot / case.top_k + 1) * case.hidden;
        let (x, w) = (&case.x[row.clone()], case.weights[slot]);
        let term = emulated(&experts.experts[id as usize], activation, x, w, on_input);
        out[row].iter_mut().zip(term).for_each(|(o, t)| *o += t);
    }
    out
}

/// The experts with the scheme that `scheme` names for each expert and linear: gate, up, down.
fn with_schemes(
    experts: &ExpertWeights,
    scheme: impl Fn(usize, usize) -> Option<ActivationQuant>,
) -> ExpertWeights {
    let mut experts = experts.clone();
    for (e, expert) in experts.experts.iter_mut().enumerate() {
        let expert = Arc::make_mut(expert);
        let linears = [
            expert.gate.as_mut(),
            Some(&mut expert.up),
            Some(&mut expert.down),
        ];
        for (i, linear) in linears.into_iter().enumerate() {
            if let Some(linear) = linear {
                linear.input_quant = scheme(e, i);
            }
        }
    }
    experts
}

/// Schemes that differ from linear to linear, some of them none.
fn mixed(expert: usize, linear: usize) -> Option<ActivationQuant> {
    SCHEMES
        .get((3 * expert + 4 * linear) % (SCHEMES.len() + 1))
        .copied()
}

fn run(
    kernel: &CpuKernel,
    experts: &ExpertWeights,
    activation: Activation,
    batch: ExpertBatch<'_>,
) -> Vec<f32> {
    let batch = batch.with_activation_quant(ActivationQuantMode::Emulate);
    let plain = kernel.experts(experts, activation, &batch).unwrap();
    let ordered = prepared(experts);
    let got = kernel.experts(&ordered, activation, &batch).unwrap();
    if let Rows::F32(_) = batch.hidden() {
        assert_eq!(bits(&got), bits(&plain));
    }
    plain
}

fn place(on_input: bool) -> RouterWeight {
    match on_input {
        true => RouterWeight::OnInput,
        false => RouterWeight::OnOutput,
    }
}

/// How far apart the results are, relative to their size.
fn distance(a: &[f32], b: &[f32]) -> f32 {
    let norm = |v: &mut dyn Iterator<Item = f32>| v.map(|v| v * v).sum::<f32>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn every_scheme_equals_the_formula() {
    let mut noise = Noise::new(31);
    let kernel = CpuKernel::default().with_isa(Isa::Portable).unwrap();
    for scheme in SCHEMES {
        for activation in [OAI, Activation::Relu2NoMul] {
            let plain = noise.experts([8, 40, 36], activation.is_gated(), true);
            let experts = with_schemes(&plain, |_, _| Some(scheme));
            let case = Case::new(&mut noise, 9, 40, 3, 8);
            for on_input in [false, true] {
                let batch = case.batch().with_router_weight(place(on_input));
                let got = run(&kernel, &experts, activation, batch);
                assert_near(&got, &expected(&case, &experts, activation, on_input));
                let off = kernel.experts(&experts, activation, &batch).unwrap();
                assert!(distance(&got, &off) > 1e-3, "{scheme:?} changes the output");
            }
        }
    }
}

#[test]
fn linears_may_differ() {
    let mut noise = Noise::new(32);
    let experts = with_schemes(&noise.experts([11, 40, 36], true, true), mixed);
    let case = Case::new(&mut noise, 24, 40, 3, 11);
    for on_input in [false, true] {
        let batch = case.batch().with_router_weight(place(on_input));
        let got = run(&CpuKernel::default(), &experts, OAI, batch);
        assert_near(&got, &expected(&case, &experts, OAI, on_input));
    }
}

#[test]
fn off_looks_at_no_scheme_and_no_scheme_is_off() {
    let mut noise = Noise::new(33);
    let plain = noise.experts([8, 33, 20], true, true);
    let experts = with_schemes(&plain, mixed);
    let case = Case::new(&mut noise, 9, 33, 3, 8);
    let kernel = CpuKernel::default();
    for on_input in [false, true] {
        let batch = case.batch().with_router_weight(place(on_input));
        let weights_only = bits(&kernel.experts(&plain, OAI, &batch).unwrap());
        let off = batch.with_activation_quant(ActivationQuantMode::Off);
        for batch in [batch, off] {
            let got = kernel.experts(&experts, OAI, &batch).unwrap();
            assert_eq!(bits(&got), weights_only);
        }
        assert_eq!(bits(&run(&kernel, &plain, OAI, batch)), weights_only);
    }
}

/// The same row gives the same bits alone and in any batch, on any number of threads, summed or
/// slot by slot.
#[test]
fn batch_and_threads_do_not_matter_with_quantized_activations() {
    let mut noise = Noise::new(34);
    let experts = with_schemes(&noise.experts([11, 40, 72], true, true), mixed);
    let case = Case::new(&mut noise, 33, 40, 2, 11);
    let one = CpuKernel::with_threads(1).unwrap();
    for on_input in [false, true] {
        let batch = case.batch().with_router_weight(place(on_input));
        let whole = run(&one, &experts, OAI, batch);
        for threads in [2, 3, 8] {
            let kernel = CpuKernel::with_threads(threads).unwrap();
            assert_eq!(bits(&run(&kernel, &experts, OAI, batch)), bits(&whole));
        }
        for row in 0..33 {
            let (x, ids) = (&case.x[row * 40..][..40], &case.ids[row * 2..][..2]);
            let batch = ExpertBatch::new(x, 40, ids, &case.weights[row * 2..][..2], 2).unwrap();
            let got = run(
                &one,
                &experts,
                OAI,
                batch.with_router_weight(place(on_input)),
            );
            assert_eq!(bits(&got), bits(&whole[row * 40..][..40]), "row {row}");
        }
        let batch = batch.with_activation_quant(ActivationQuantMode::Emulate);
        let slots = one.experts_per_slot(&experts, OAI, &batch).unwrap();
        let sums = slots.chunks(80).flat_map(|slots| {
            let (a, b) = slots.split_at(40);
            a.iter().zip(b).map(|(a, b)| 0.0 + a + b)
        });
        assert_eq!(bits(&sums.collect::<Vec<_>>()), bits(&whole));
    }
}

#[test]
fn bf16_rows_are_quantized_as_their_f32_values() {
    let mut noise = Noise::new(35);
    let experts = with_schemes(&noise.experts([5, 33, 12], true, true), mixed);
    let mut case = Case::new(&mut noise, 6, 33, 2, 5);
    let narrow: Vec<bf16> = case.x.iter().map(|&x| bf16::from_f32(x)).collect();
    case.x = narrow.iter().map(|x| x.to_f32()).collect();
    let kernel = CpuKernel::default();
    let batch = ExpertBatch::new(Rows::Bf16(&narrow), 33, &case.ids, &case.weights, 2).unwrap();
    assert_eq!(
        bits(&run(&kernel, &experts, OAI, batch)),
        bits(&run(&kernel, &experts, OAI, case.batch()))
    );
}

/// One quantized row per token where gate, up and all experts agree.
#[test]
fn equal_inputs_are_quantized_once() {
    let mut noise = Noise::new(36);
    let plain = noise.experts([3, 8, 8], true, false);
    let (ids, weights) = ([0, 1, -1, 2, -1, -1], [0.5, 0.5, 0.0, 0.25, 0.0, 0.0]);
    let x = noise.units(24);
    let planned = |experts: &ExpertWeights, on_input: bool| {
        let batch = ExpertBatch::new(&x[..], 8, &ids, &weights, 2)
            .unwrap()
            .with_router_weight(place(on_input))
            .with_activation_quant(ActivationQuantMode::Emulate);
        let experts = ExpertSet::from(experts);
        let grouped = Grouped::new(&batch, experts.len()).unwrap();
        let used = grouped.experts().map(|(e, ..)| experts.mlp(e));
        InputPlan::new(&used.collect::<Vec<_>>(), &grouped, &batch).len()
    };
    let per_token = |format| Some(ActivationQuant::PerToken { format });
    let alike = with_schemes(&plain, |_, _| per_token(F8));
    assert_eq!((planned(&alike, false), planned(&alike, true)), (2, 2));
    let of_linear = with_schemes(&plain, |_, i| per_token([F8, I8, F4][i]));
    assert_eq!(planned(&of_linear, false), 4);
    let of_expert = with_schemes(&plain, |e, _| per_token([F8, I8, F4][e]));
    assert_eq!(planned(&of_expert, false), 3);
    let down_alone = with_schemes(&plain, |_, i| per_token(F8).filter(|_| i == 2));
    assert_eq!(planned(&down_alone, false), 0);
}
