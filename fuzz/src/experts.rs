//! The experts' kernel: any formats, layouts, batches and ids.

use std::ops::Range;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use half::bf16;
use moekit_kernels::{
    ActivationQuantMode, CpuKernel, ExpertBatch, ExpertSet, PreparedExpert, PreparedExperts,
    RouterWeight, Rows,
};
use moekit_quant::{
    Activation, ActivationFormat, ActivationQuant, CodeFormat, ExpertLinear, ExpertMlp,
    ExpertWeights, PackedMatrix, ScaleFormat, ScaleGrid,
};

use crate::pick::{pick, size};
use crate::router::kernel;
use crate::views::CODES;

/// Multiplies, as they are stored and prepared. A row's result must not depend on the rows beside it, must
/// be the sum of its slots, and near what plain loops in double precision give.
pub fn experts(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let kernel = kernel(u)?;
    let (mut hidden_size, intermediate) = (size(u)?, size(u)?);
    if u.ratio(1, 16)? {
        // Around the features that are decoded at a time.
        hidden_size = pick(u, &[1020, 1024, 1028, 1030])?;
    }
    let activation = activation(u)?;
    let experts: Vec<_> = (0..u.int_in_range(1..=3)?)
        .map(|_| expert(u, activation.is_gated(), [intermediate, hidden_size]))
        .collect::<Result<_>>()?;
    let num_experts = experts.len();
    let mut weights = ExpertWeights::new(hidden_size, intermediate, experts).expect("they fit");
    if u.ratio(1, 32)? {
        // Anyone may set the fields; what does not fit must be refused.
        let (is_gated, sizes) = (u.arbitrary()?, [size(u)?, size(u)?]);
        let other = expert(u, is_gated, sizes)?;
        weights.experts.push(other);
    }

    let num_rows = match hidden_size * intermediate {
        // More than rows of a chunk.
        0..256 => pick(u, &[9, 193, 200])?,
        256..4096 => pick(u, &[0, 1, 2, 3, 5, 8, 17, 33])?,
        _ => pick(u, &[1, 2, 9, 13])?,
    };
    let top_k = u.int_in_range(1..=4)?;
    let last = num_experts as i64 - 1;
    let ids: Vec<i64> = (0..num_rows * top_k)
        .map(|_| match u.ratio(1, 200)? {
            true => u.arbitrary(),
            false => u.int_in_range(-1..=last),
        })
        .collect::<Result<_>>()?;
    let router_weight = pick(u, &[0.5, 1.0, -2.0])?;
    let noise = u.arbitrary::<[i8; 11]>()?;
    let hidden: Vec<bf16> = (0..num_rows * hidden_size)
        .map(|i| bf16::from_f32(f32::from(noise[i % noise.len()]) / 64.0))
        .collect();
    let case = Case {
        kernel,
        weights: &weights,
        activation,
        single: hidden.iter().map(|v| v.to_f32()).collect(),
        hidden,
        is_half: u.arbitrary()?,
        router_weights: vec![router_weight; ids.len()],
        ids,
        top_k,
        place: pick(u, &[RouterWeight::OnOutput, RouterWeight::OnInput])?,
        mode: pick(u, &[ActivationQuantMode::Off, ActivationQuantMode::Emulate])?,
    };
    case.check((&weights).into());
    if let Ok(prepared) = PreparedExperts::new(weights.clone()) {
        for expert in prepared.experts() {
            let bytes = expert.to_bytes();
            let back = PreparedExpert::from_bytes(&bytes).expect("its own bytes");
            assert_eq!(back.to_bytes(), bytes);
        }
        case.check((&prepared).into());
    }
    Ok(())
}

/// Tokens, and the experts that they go to.
struct Case<'a> {
    kernel: CpuKernel,
    weights: &'a ExpertWeights,
    activation: Activation,
    hidden: Vec<bf16>,
    /// The same values.
    single: Vec<f32>,
    is_half: bool,
    ids: Vec<i64>,
    router_weights: Vec<f32>,
    top_k: usize,
    place: RouterWeight,
    mode: ActivationQuantMode,
}

impl Case<'_> {
    fn batch(&self, rows: Range<usize>) -> ExpertBatch<'_> {
        let hidden_size = self.weights.hidden_size;
        let features = rows.start * hidden_size..rows.end * hidden_size;
        let slots = rows.start * self.top_k..rows.end * self.top_k;
        let hidden = match self.is_half {
            true => Rows::Bf16(&self.hidden[features]),
            false => Rows::F32(&self.single[features]),
        };
        let (ids, weights) = (&self.ids[slots.clone()], &self.router_weights[slots]);
        let batch = ExpertBatch::new(hidden, hidden_size, ids, weights, self.top_k);
        let batch = batch.expect("it fits").with_router_weight(self.place);
        batch.with_activation_quant(self.mode)
    }

    /// What comes of all rows, if these experts are taken at all.
    fn check(&self, experts: ExpertSet<'_>) {
        let (hidden_size, num_rows) = (self.weights.hidden_size, self.ids.len() / self.top_k);
        let whole = self.batch(0..num_rows);
        let Ok(all) = self.kernel.experts(experts, self.activation, &whole) else {
            return;
        };
        assert_eq!(all.len(), num_rows * hidden_size);
        let slots = self
            .kernel
            .experts_per_slot(experts, self.activation, &whole);
        let slots = slots.expect("as the sum of them");
        for row in 0..num_rows {
            let own = &all[row * hidden_size..(row + 1) * hidden_size];
            let alone = self
                .kernel
                .experts(experts, self.activation, &self.batch(row..row + 1));
            assert_eq!(bits(own), bits(&alone.expect("as in company")), "row {row}");
            let ids = &self.ids[row * self.top_k..(row + 1) * self.top_k];
            let width = self.top_k * hidden_size;
            check_sum(own, ids, &slots[row * width..(row + 1) * width]);
            if self.mode == ActivationQuantMode::Off {
                let x = &self.single[row * hidden_size..(row + 1) * hidden_size];
                let weight = (self.router_weights[row * self.top_k], self.place);
                let expected = reference(self.weights, self.activation, x, ids, weight);
                // Rows in bf16 may meet weights in bf16 products.
                near(own, expected, if self.is_half { 2e-2 } else { 1e-5 });
            }
        }
    }
}

/// Whether a row is the sum of its slots, `[top_k, hidden_size]`, of which those without expert are zero.
fn check_sum(own: &[f32], ids: &[i64], slots: &[f32]) {
    let mut sum = vec![(0.0_f32, 0.0_f64); own.len()];
    for (id, term) in ids.iter().zip(slots.chunks_exact(own.len())) {
        assert!(*id >= 0 || term.iter().all(|v| v.to_bits() == 0));
        for (sum, v) in sum.iter_mut().zip(term) {
            sum.0 += v;
            sum.1 += f64::from(v.abs());
        }
    }
    near(own, sum.into_iter().map(|(v, m)| (f64::from(v), m)), 1e-6);
}

/// A number in double precision, and the sum of the magnitudes that it is a sum of: rounding grows
/// with the latter.
type Number = (f64, f64);

fn near(got: &[f32], expected: impl IntoIterator<Item = Number>, tolerance: f64) {
    for (got, (value, magnitude)) in got.iter().zip(expected) {
        // Where terms overflow, how far they got depends on the order.
        if got.is_finite() && magnitude < f64::from(f32::MAX) {
            let error = (f64::from(*got) - value).abs();
            assert!(
                error <= tolerance * magnitude.max(1e-3),
                "{got} {value} of {magnitude}"
            );
        }
    }
}

fn reference(
    weights: &ExpertWeights,
    activation: Activation,
    x: &[f32],
    ids: &[i64],
    (weight, place): (f32, RouterWeight),
) -> Vec<Number> {
    let mut sum = vec![(0.0, 0.0); x.len()];
    let (before, after) = match place {
        RouterWeight::OnInput => (f64::from(weight), 1.0),
        RouterWeight::OnOutput => (1.0, f64::from(weight)),
    };
    let x = x.iter().map(|v| f64::from(*v) * before);
    let x: Vec<Number> = x.map(|v| (v, v.abs())).collect();
    for id in ids.iter().filter_map(|&id| usize::try_from(id).ok()) {
        let expert = &weights.experts[id];
        let up = linear(&expert.up, &x);
        let gate = expert.gate.as_ref().map(|gate| linear(gate, &x));
        let inner: Vec<Number> = up
            .iter()
            .enumerate()
            .map(|(i, up)| {
                let gate = gate.as_ref().map_or((0.0, 0.0), |gate| gate[i]);
                let value = activation.apply(gate.0 as f32, up.0 as f32);
                // A product of the two, or a square, beside terms of the first order.
                let magnitude = (1.0 + gate.1 + up.1) * (1.0 + up.1);
                (f64::from(value), magnitude)
            })
            .collect();
        for (sum, y) in sum.iter_mut().zip(linear(&expert.down, &inner)) {
            sum.0 += y.0 * after;
            sum.1 += y.1 * after.abs();
        }
    }
    sum
}

fn linear(linear: &ExpertLinear, x: &[Number]) -> Vec<Number> {
    let weight = &linear.weight;
    let mut row = vec![0.0; x.len()];
    let output = |r: usize| {
        weight.dequantize_row(r, &mut row).expect("the row exists");
        let bias = linear.bias.as_ref().map_or(0.0, |bias| f64::from(bias[r]));
        let mut sum = (bias, bias.abs());
        for (c, (w, x)) in row.iter().zip(x).enumerate() {
            let w = f64::from(*w);
            // Codes and zero points may be multiplied apart.
            let zero = weight
                .zero_points()
                .and_then(|grid| grid.at(r, c))
                .unwrap_or(0.0);
            let scale = weight
                .scales()
                .map_or(Some(1.0), |grid| grid.at(r, c))
                .unwrap_or(0.0);
            let zero = f64::from(zero) * f64::from(scale) * f64::from(weight.global_scale());
            sum.0 += w * x.0;
            sum.1 += (w.abs() + 2.0 * zero.abs()) * x.1;
        }
        sum
    };
    (0..weight.rows()).map(output).collect()
}

/// One bit pattern for every NaN.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
    values.iter().map(bits).collect()
}

fn activation(u: &mut Unstructured<'_>) -> Result<Activation> {
    let limit = pick(u, &[None, Some(1.5)])?;
    pick(
        u,
        &[
            Activation::Silu { limit },
            Activation::Gelu { limit },
            Activation::GeluTanh { limit },
            Activation::SwigluOai {
                alpha: 1.702,
                beta: 1.0,
                limit,
            },
            Activation::SwigluStep { limit: 2.0 },
            Activation::SiluNoMul,
            Activation::GeluNoMul,
            Activation::GeluTanhNoMul,
            Activation::Relu2NoMul,
        ],
    )
}

fn expert(
    u: &mut Unstructured<'_>,
    is_gated: bool,
    [intermediate, hidden]: [usize; 2],
) -> Result<Arc<ExpertMlp>> {
    let gate = match is_gated {
        true => Some(packed_linear(u, [intermediate, hidden])?),
        false => None,
    };
    let up = packed_linear(u, [intermediate, hidden])?;
    let down = packed_linear(u, [hidden, intermediate])?;
    Ok(Arc::new(ExpertMlp::new(gate, up, down).expect("they fit")))
}

/// A linear of any format with codes of middling size, dense, strided or transposed, anywhere in
/// its bytes.
fn packed_linear(u: &mut Unstructured<'_>, [rows, cols]: [usize; 2]) -> Result<ExpertLinear> {
    let format = pick(u, CODES)?;
    let noise = u.arbitrary::<[u8; 7]>()?;
    let offset = u.int_in_range(0..=3)?;
    let strides = match (format.bytes(), u.int_in_range(0..=2)?) {
        // Transposed, as a fused parameter lies.
        (Some(bytes), 0) => [bytes, rows * bytes],
        // Every other row.
        (bytes, 1) => [2 * format.row_bytes(cols), bytes.unwrap_or(0)],
        (bytes, _) => [format.row_bytes(cols), bytes.unwrap_or(0)],
    };
    let end = (rows - 1) * strides[0]
        + match format.bytes() {
            Some(bytes) => (cols - 1) * strides[1] + bytes,
            None => cols.div_ceil(2),
        };
    let values = match format {
        CodeFormat::F32 => pattern(end, 4, &noise, 0x3e),
        CodeFormat::F16 | CodeFormat::BF16 => pattern(end, 2, &noise, 0x3c),
        // Without NaN.
        CodeFormat::F8E4M3 => pattern(end, usize::MAX, &noise.map(|v| v & 0xb7), 0),
        _ => pattern(end, usize::MAX, &noise, 0),
    };
    // Strides count from the first code, which may lie at any address.
    let codes = Bytes::from([&noise[..offset], &values].concat()).slice(offset..);
    let mut matrix = PackedMatrix::new(format, [rows, cols], strides, codes).expect("it fits");
    if u.arbitrary()? {
        matrix = matrix
            .with_scales(grid(u, [rows, cols], false)?)
            .expect("it covers all");
    }
    if u.ratio(1, 4)? {
        matrix = matrix
            .with_zero_points(grid(u, [rows, cols], true)?)
            .expect("it covers all");
    }
    let mut linear = ExpertLinear::new(matrix.with_global_scale(pick(u, &[1.0, 0.25])?));
    if u.ratio(1, 4)? {
        linear.bias = Some((0..rows).map(|r| r as f32 / 16.0).collect());
    }
    let format = pick(
        u,
        &[
            ActivationFormat::F8E4M3,
            ActivationFormat::I8,
            ActivationFormat::F4E2M1,
        ],
    )?;
    linear.input_quant = pick(
        u,
        &[
            None,
            Some(ActivationQuant::PerToken { format }),
            Some(ActivationQuant::Mx { format }),
            Some(ActivationQuant::Static {
                format,
                scale: 0.01,
            }),
            Some(ActivationQuant::Nvfp4 { scale: 0.01 }),
            Some(ActivationQuant::PerGroup {
                format,
                group_size: 24,
                power_of_two: true,
            }),
        ],
    )?;
    Ok(linear)
}

fn grid(u: &mut Unstructured<'_>, matrix: [usize; 2], is_zero_point: bool) -> Result<ScaleGrid> {
    let block = [pick(u, &[1, 3, 16, 32])?, pick(u, &[1, 5, 16, 32, 128])?];
    let phase = match u.ratio(1, 4)? {
        true => [
            u.int_in_range(0..=block[0] - 1)?,
            u.int_in_range(0..=block[1] - 1)?,
        ],
        false => [0, 0],
    };
    let shape = [0, 1].map(|axis| (matrix[axis] + phase[axis]).div_ceil(block[axis]));
    let format = match is_zero_point {
        true => ScaleFormat::I8,
        false => pick(
            u,
            &[
                ScaleFormat::F32,
                ScaleFormat::F16,
                ScaleFormat::BF16,
                ScaleFormat::F8E4M3,
                ScaleFormat::F8E8M0,
            ],
        )?,
    };
    let noise = u.arbitrary::<[u8; 7]>()?;
    let size = format.bytes();
    let len = shape[0] * shape[1] * size;
    let bytes = match format {
        ScaleFormat::F8E4M3 => pattern(len, 1, &noise, 0x2c),
        ScaleFormat::F8E8M0 => pattern(len, 1, &noise, 126),
        ScaleFormat::I8 => pattern(len, usize::MAX, &noise.map(|v| v & 7), 0),
        _ => pattern(len, size, &noise, if size == 4 { 0x3e } else { 0x38 }),
    };
    let strides = [shape[1] * size, size];
    let grid = ScaleGrid::new(format, shape, block, strides, bytes).expect("it fits");
    Ok(grid.with_phase(phase))
}

/// Noise whose every `size`th byte (the exponent of a float) is `last`.
fn pattern(len: usize, size: usize, noise: &[u8], last: u8) -> Bytes {
    let byte = |i: usize| match i % size == size - 1 {
        true => last,
        false => noise[i % noise.len()],
    };
    (0..len).map(byte).collect()
}
