//! Formats with the scales that checkpoints have, through the whole engine.

use std::sync::Arc;

use bytes::Bytes;
use half::bf16;
use moekit_quant::{
    Activation, ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, ExpertMlp,
    ExpertWeights, PackedMatrix, ScaleFormat, ScaleGrid,
};

use crate::prepared::PreparedExpert;
use crate::test_weights::Noise;
use crate::{ActivationQuantMode, CpuKernel, ExpertBatch, Isa, PreparedExperts, Rows, dequantize};

/// A weight format: codes, scales and the block that has one, zero points, the scale of the whole.
#[derive(Clone, Copy, Debug)]
struct Scheme {
    codes: CodeFormat,
    scales: Option<(ScaleFormat, [usize; 2])>,
    zero_points: bool,
    global: f32,
}

const ALL: usize = usize::MAX;

const fn scheme(codes: CodeFormat, scales: ScaleFormat, block: [usize; 2]) -> Scheme {
    Scheme {
        codes,
        scales: Some((scales, block)),
        zero_points: false,
        global: 1.0,
    }
}

const NVFP4: Scheme = Scheme {
    global: 0.0625,
    ..scheme(CodeFormat::F4E2M1, ScaleFormat::F8E4M3, [1, 16])
};

const SCHEMES: [Scheme; 13] = [
    scheme(CodeFormat::F8E4M3, ScaleFormat::F32, [ALL, ALL]),
    scheme(CodeFormat::F8E4M3, ScaleFormat::BF16, [1, ALL]),
    scheme(CodeFormat::F8E4M3, ScaleFormat::F32, [128, 128]),
    scheme(CodeFormat::F8E4M3, ScaleFormat::F8E8M0, [1, 32]),
    Scheme {
        scales: None,
        ..scheme(CodeFormat::F8E4M3, ScaleFormat::F32, [1, 1])
    },
    scheme(CodeFormat::F4E2M1, ScaleFormat::F8E8M0, [1, 32]),
    NVFP4,
    scheme(CodeFormat::I4Offset, ScaleFormat::F16, [1, 32]),
    scheme(CodeFormat::I4Offset, ScaleFormat::F32, [1, 64]),
    scheme(CodeFormat::I4Offset, ScaleFormat::BF16, [1, ALL]),
    Scheme {
        zero_points: true,
        ..scheme(CodeFormat::I4Offset, ScaleFormat::BF16, [1, 128])
    },
    Scheme {
        zero_points: true,
        ..scheme(CodeFormat::I4Offset, ScaleFormat::F32, [1, ALL])
    },
    scheme(CodeFormat::I8, ScaleFormat::F32, [1, ALL]),
];

fn grid(
    format: ScaleFormat,
    shape: [usize; 2],
    block: [usize; 2],
    phase: usize,
    mut code: impl FnMut() -> Vec<u8>,
) -> ScaleGrid {
    let block = [block[0].min(shape[0]), block[1].min(shape[1] + phase)];
    let blocks = [
        shape[0].div_ceil(block[0]),
        (shape[1] + phase).div_ceil(block[1]),
    ];
    let bytes: Vec<u8> = (0..blocks[0] * blocks[1]).flat_map(|_| code()).collect();
    let strides = [blocks[1] * format.bytes(), format.bytes()];
    let grid = ScaleGrid::new(format, blocks, block, strides, bytes.into()).unwrap();
    grid.with_phase([0, phase])
}

/// A random matrix, whose first column is number `phase` of its group.
fn matrix(noise: &mut Noise, scheme: Scheme, shape: [usize; 2], phase: usize) -> PackedMatrix {
    let len = shape[0] * scheme.codes.row_bytes(shape[1]);
    // No NaN among E4M3: exponents below the highest.
    let mask = if scheme.codes == CodeFormat::F8E4M3 {
        0xb7
    } else {
        0xff
    };
    let codes: Bytes = (0..len)
        .map(|_| (noise.bits() >> 20) as u8 & mask)
        .collect();
    let mut out = PackedMatrix::contiguous(scheme.codes, shape, codes).unwrap();
    if let Some((format, block)) = scheme.scales {
        let phase = phase % block[1];
        let scales = grid(format, shape, block, phase, || {
            let value = 0.01 + 0.02 * noise.unit().abs();
            match format {
                ScaleFormat::F32 => value.to_le_bytes().into(),
                ScaleFormat::F16 => half::f16::from_f32(value).to_le_bytes().into(),
                ScaleFormat::BF16 => bf16::from_f32(value).to_le_bytes().into(),
                // Those below the least exponent too.
                ScaleFormat::F8E4M3 => vec![(noise.bits() >> 20) as u8 & 0x4f],
                _ => vec![120 + (noise.bits() >> 20) as u8 % 4],
            }
        });
        out = out.with_scales(scales).unwrap();
        if scheme.zero_points {
            let zeros = grid(ScaleFormat::I8, shape, block, phase, || {
                vec![((noise.bits() >> 20) as u8 % 17).wrapping_sub(8)]
            });
            out = out.with_zero_points(zeros).unwrap();
        }
    }
    out.with_global_scale(scheme.global)
}

/// Gives each of `rows` outputs one of `cols` inputs, in turns.
fn selection([rows, cols]: [usize; 2]) -> PackedMatrix {
    let one = |i: usize| f32::from(u8::from(i % cols == i / cols % cols));
    let codes: Vec<u8> = (0..rows * cols)
        .map(one)
        .flat_map(f32::to_le_bytes)
        .collect();
    PackedMatrix::contiguous(CodeFormat::F32, [rows, cols], codes.into()).unwrap()
}

/// An expert whose up projection is the matrix, and one whose down projection it is.
fn up_and_down(weight: PackedMatrix, quant: Option<ActivationQuant>) -> [PreparedExperts; 2] {
    let turned = selection([weight.cols(), weight.rows()]);
    let mut as_up = experts([None, Some(weight.clone()), Some(turned.clone())]);
    let mut as_down = experts([None, Some(turned), Some(weight)]);
    Arc::make_mut(&mut as_up.experts[0]).up.input_quant = quant;
    Arc::make_mut(&mut as_down.experts[0]).down.input_quant = quant;
    [as_up, as_down].map(|experts| PreparedExperts::new(experts).unwrap())
}

/// Holds an expert whose up projection has a weight, and one whose down projection has it, to sums
/// in double precision: what differs is the rounding of `f32` sums alone. The last row has the same
/// bits alone.
///
/// Returns the largest difference of a product, over the sum of the magnitudes of its terms.
fn check_products(noise: &mut Noise, weight: PackedMatrix, quant: Option<ActivationQuant>) -> f64 {
    let (values, [height, width]) = (dequantize(&weight), [weight.rows(), weight.cols()]);
    let quantized = |x: Vec<f32>| -> Vec<f64> {
        let mut x = x;
        if let Some(quant) = quant {
            quant.apply(&mut x);
        }
        x.into_iter().map(f64::from).collect()
    };
    let name = format!(
        "{} {:?} [{height}, {width}]",
        weight.format(),
        weight.scales().map(|s| s.block())
    );
    let [as_up, as_down] = up_and_down(weight, quant);
    let for_up: Vec<_> = noise
        .units(14 * width)
        .into_iter()
        .map(bf16::from_f32)
        .collect();
    let for_down = rows(noise, 14, height);
    let mut worst = 0.0_f64;
    for (isa, narrow) in isas() {
        let kernel = kernel(isa, 2);
        let up = run(&kernel, &as_up, &for_up, narrow);
        let alone = run(&kernel, &as_up, &for_up[13 * width..], narrow);
        assert!(bits(&alone) == bits(&up[13 * width..]), "{isa} {name}");
        for (x, got) in for_up.chunks_exact(width).zip(up.chunks_exact(width)) {
            let x = quantized(x.iter().map(|x| x.to_f32()).collect());
            for (got, [sum, size]) in got.iter().zip(product(&values, &x)) {
                let relu = f64::from(*got).sqrt();
                worst = worst.max((relu - sum.max(0.0)).abs() / size);
            }
        }
        let down = run(&kernel, &as_down, &for_down, narrow);
        for (x, got) in for_down.chunks_exact(height).zip(down.chunks_exact(height)) {
            let squares = x.iter().map(|x| x.to_f32() * x.to_f32()).cycle();
            let inner = quantized(squares.take(width).collect());
            for (got, [sum, size]) in got.iter().zip(product(&values, &inner)) {
                worst = worst.max((f64::from(*got) - sum).abs() / size);
            }
        }
    }
    worst
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

fn experts(linears: [Option<PackedMatrix>; 3]) -> ExpertWeights {
    let [gate, up, down] = linears.map(|m| m.map(ExpertLinear::new));
    let expert = ExpertMlp::new(gate, up.unwrap(), down.unwrap()).unwrap();
    let (hidden, width) = (expert.up.weight.cols(), expert.up.weight.rows());
    ExpertWeights::new(hidden, width, vec![Arc::new(expert)]).unwrap()
}

/// Rows of small integers, whose squares are bf16 numbers.
fn rows(noise: &mut Noise, rows: usize, width: usize) -> Vec<bf16> {
    let value = |_| bf16::from_f32(f32::from((noise.bits() >> 20) as u8 % 16));
    (0..rows * width).map(value).collect()
}

/// The output of the one expert, for rows as they are or as `f32`.
fn run(kernel: &CpuKernel, experts: &PreparedExperts, x: &[bf16], narrow: bool) -> Vec<f32> {
    let width = experts.hidden_size();
    let (ids, weights) = (vec![0; x.len() / width], vec![1.0; x.len() / width]);
    let wide: Vec<f32> = x.iter().map(|x| x.to_f32()).collect();
    let rows = match narrow {
        true => Rows::Bf16(x),
        false => Rows::F32(&wide),
    };
    let batch = ExpertBatch::new(rows, width, &ids, &weights, 1).unwrap();
    let batch = batch.with_activation_quant(ActivationQuantMode::Emulate);
    let activation = match experts.experts()[0].gate() {
        Some(_) => Activation::SILU,
        None => Activation::Relu2NoMul,
    };
    kernel.experts(experts, activation, &batch).unwrap()
}

/// Every instruction set, with rows in bf16 and in `f32`.
fn isas() -> impl Iterator<Item = (Isa, bool)> {
    let isas = Isa::available().into_iter();
    isas.flat_map(|isa| [(isa, true), (isa, false)])
}

fn kernel(isa: Isa, threads: usize) -> CpuKernel {
    let kernel = CpuKernel::with_threads(threads).unwrap();
    kernel.with_isa(isa).unwrap()
}

/// `W x` and `|W| |x|`.
fn product(weights: &[f32], x: &[f64]) -> Vec<[f64; 2]> {
    let row = |w: &[f32]| {
        let terms = w.iter().zip(x).map(|(w, x)| f64::from(*w) * x);
        terms.fold([0.0, 0.0], |[sum, size], t| [sum + t, size + t.abs()])
    };
    weights.chunks_exact(x.len()).map(row).collect()
}

/// The largest error of a product, over the sum of the magnitudes of its terms, that docs/kernels.md
/// states.
fn max_error(scheme: Scheme) -> f64 {
    match (scheme.codes, scheme.scales) {
        _ if scheme.zero_points => 4e-6,
        (_, Some((ScaleFormat::F8E8M0, _))) => 1e-7,
        (CodeFormat::F4E2M1 | CodeFormat::I8, _) => 3e-7,
        _ => 5e-7,
    }
}

#[test]
fn products_are_those_of_the_dequantized_weights() {
    let mut noise = Noise::new(41);
    for scheme in SCHEMES {
        let mut worst = 0.0_f64;
        for (shape, phase) in [
            ([40, 256], 0),
            ([33, 100], 0),
            ([7, 36], 0),
            ([64, 1312], 16),
        ] {
            let weight = matrix(&mut noise, scheme, shape, phase);
            worst = worst.max(check_products(&mut noise, weight, None));
        }
        assert!(worst <= max_error(scheme), "{scheme:?}: {worst}");
    }
}

/// The formats of gate, up and down in turn.
fn mixtures(noise: &mut Noise) -> Vec<ExpertWeights> {
    let other = Scheme {
        global: 0.5,
        ..NVFP4
    };
    let mut mixtures: Vec<_> = SCHEMES.iter().map(|s| [*s; 3]).collect();
    mixtures.push([NVFP4, other, SCHEMES[7]]);
    mixtures.push([SCHEMES[0], SCHEMES[10], NVFP4]);
    let expert = |[gate, up, down]: [Scheme; 3]| {
        let mut linear = |scheme, shape| Some(matrix(noise, scheme, shape, 0));
        experts([
            linear(gate, [72, 160]),
            linear(up, [72, 160]),
            linear(down, [160, 72]),
        ])
    };
    mixtures.into_iter().map(expert).collect()
}

/// The same row gives the same bits alone and in any batch, on any number of threads.
#[test]
fn batch_and_threads_do_not_matter_in_any_format() {
    const ROWS: usize = 512;
    let mut noise = Noise::new(42);
    for mut weights in mixtures(&mut noise) {
        let expert = Arc::make_mut(&mut weights.experts[0]);
        if expert.up.weight.format() == CodeFormat::I8 {
            let quant = ActivationQuant::PerToken {
                format: ActivationFormat::I8,
            };
            expert.gate.as_mut().unwrap().input_quant = Some(quant);
            expert.up.input_quant = Some(quant);
            expert.down.input_quant = Some(quant);
        }
        let prepared = PreparedExperts::new(weights).unwrap();
        let x = rows(&mut noise, ROWS, 160);
        for (isa, narrow) in isas() {
            let whole = run(&kernel(isa, 1), &prepared, &x, narrow);
            assert!(whole.iter().all(|v| v.is_finite()));
            for (threads, rows) in [(2, ROWS), (1, 1), (2, 5), (3, 13), (1, 30)] {
                let kernel = kernel(isa, threads);
                let parts = x.chunks(rows * 160);
                let got: Vec<f32> = parts
                    .flat_map(|x| run(&kernel, &prepared, x, narrow))
                    .collect();
                assert_eq!(bits(&got), bits(&whole), "{isa} {rows} rows");
            }
        }
    }
}

/// Gate and up of different formats, or of one format under different scales of the whole.
#[test]
fn mixtures_equal_the_formula() {
    let mut noise = Noise::new(43);
    for weights in mixtures(&mut noise) {
        let x = rows(&mut noise, 14, 160);
        let expert = weights.experts[0].clone();
        let prepared = PreparedExperts::new(weights).unwrap();
        for (isa, narrow) in isas() {
            let got = run(&kernel(isa, 2), &prepared, &x, narrow);
            for (x, got) in x.chunks_exact(160).zip(got.chunks_exact(160)) {
                let x: Vec<f64> = x.iter().map(|x| x.to_f64()).collect();
                let of = |linear: &ExpertLinear, x: &[f64]| product(&dequantize(&linear.weight), x);
                let gate = of(expert.gate.as_ref().unwrap(), &x);
                let up = of(&expert.up, &x);
                let inner = gate.iter().zip(&up).map(|([g, _], [u, _])| {
                    f64::from(Activation::SILU.apply(*g as f32, *u as f32))
                });
                let down = of(&expert.down, &inner.collect::<Vec<_>>());
                for (got, [sum, size]) in got.iter().zip(down) {
                    // What lies between w13 and w2 is rounded to bf16.
                    let error = (f64::from(*got) - sum).abs();
                    assert!(error <= 4e-3 * size, "{isa}: {got} {sum} of {size}");
                }
            }
        }
    }
}

/// Integers times integers, against activations that are quantized and dequantized.
#[test]
fn int8_rows_times_int8_weights_equal_their_emulation() {
    let mut noise = Noise::new(44);
    let format = ActivationFormat::I8;
    let scale = 0.11;
    for quant in [
        ActivationQuant::PerToken { format },
        ActivationQuant::Static { format, scale },
    ] {
        for shape in [[40, 256], [33, 101], [7, 36]] {
            let weight = matrix(&mut noise, SCHEMES[12], shape, 0);
            let worst = check_products(&mut noise, weight, Some(quant));
            assert!(worst <= max_error(SCHEMES[12]), "{shape:?}: {worst}");
        }
    }
}

/// Panels take what the checkpoint takes, but for the padding of the last one.
#[test]
fn prepared_weights_are_as_large_as_packed_ones() {
    let mut noise = Noise::new(45);
    for scheme in SCHEMES {
        let mut weight = |shape| Some(matrix(&mut noise, scheme, shape, 0));
        let weights = experts([weight([256, 512]), weight([256, 512]), weight([512, 256])]);
        let packed = weights.num_bytes();
        let prepared = PreparedExpert::new(&weights.experts[0]).unwrap();
        assert!(
            prepared.num_bytes() * 100 <= packed * 105,
            "{scheme:?}: {} {packed}",
            prepared.num_bytes()
        );
    }
}
