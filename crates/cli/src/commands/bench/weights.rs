//! Experts of random weights.

use std::sync::Arc;

use bytes::Bytes;
use moekit::quant::{
    CodeFormat, ExpertLinear, ExpertMlp, ExpertWeights, PackedMatrix, QuantError, ScaleFormat,
    ScaleGrid,
};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::format::{Scales, WeightFormat};
use super::shape::Shape;
use crate::error::Result;

/// The local experts of a shape, a function of the seed alone.
///
/// # Arguments
///
/// - `done` - called whenever an expert is ready.
pub(super) fn random_experts(
    shape: &Shape,
    format: WeightFormat,
    seed: u64,
    threads: usize,
    done: impl Fn() + Sync,
) -> Result<ExpertWeights> {
    let mut experts = vec![None; shape.num_local];
    let share = shape.num_local.div_ceil(threads.max(1)).max(1);
    std::thread::scope(|scope| {
        let (done, chunks) = (&done, experts.chunks_mut(share).enumerate());
        let workers: Vec<_> = chunks
            .map(|(chunk, experts)| {
                scope.spawn(move || {
                    for (i, expert) in experts.iter_mut().enumerate() {
                        let stream = (chunk * share + i) as u64;
                        *expert = Some(Arc::new(random_expert(shape, format, seed, stream)?));
                        done();
                    }
                    Ok(())
                })
            })
            .collect();
        // A panic of a worker is a fault of this program and goes on here.
        let join = |worker: std::thread::ScopedJoinHandle<'_, Result<(), QuantError>>| {
            worker
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().try_for_each(join)
    })?;
    let experts = experts.into_iter().flatten().collect();
    Ok(ExpertWeights::new(
        shape.hidden_size,
        shape.intermediate_size,
        experts,
    )?)
}

fn random_expert(
    shape: &Shape,
    format: WeightFormat,
    seed: u64,
    stream: u64,
) -> Result<ExpertMlp, QuantError> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    let (h, i) = (shape.hidden_size, shape.intermediate_size);
    let mut linear = |rows, cols| -> Result<ExpertLinear, QuantError> {
        let mut linear = ExpertLinear::new(random_matrix(format, [rows, cols], &mut rng)?);
        linear.input_quant = format.input_quant();
        Ok(linear)
    };
    ExpertMlp::new(Some(linear(i, h)?), linear(i, h)?, linear(h, i)?)
}

/// Weights of about `1 / sqrt(cols)`.
fn random_matrix(
    format: WeightFormat,
    shape: [usize; 2],
    rng: &mut impl Rng,
) -> Result<PackedMatrix, QuantError> {
    let codes = format.codes();
    let mut bytes = vec![0; shape[0] * codes.row_bytes(shape[1])];
    rng.fill_bytes(&mut bytes);
    make_finite(codes, &mut bytes);
    let matrix = PackedMatrix::contiguous(codes, shape, Bytes::from(bytes))?;
    let Some(scales) = format.scales() else {
        return Ok(matrix);
    };
    let size = 1.0 / (format.magnitude() * (shape[1] as f32).sqrt());
    let (matrix, size) = match scales.global {
        true => (matrix.with_global_scale(size), 1.0),
        false => (matrix, size),
    };
    let matrix = matrix.with_scales(random_scales(scales, shape, size, rng)?)?;
    match scales.zero_points {
        true => matrix.with_zero_points(random_zero_points(scales, shape, rng)?),
        false => Ok(matrix),
    }
}

/// Turns random bytes into finite codes; of floats of more than a byte, into magnitudes from
/// 2^-7 to 2^-3.
fn make_finite(codes: CodeFormat, bytes: &mut [u8]) {
    match codes {
        CodeFormat::F32 => {
            for code in bytes.as_chunks_mut().0 {
                *code = ((u32::from_le_bytes(*code) & 0x81ff_ffff) | 0x3c00_0000).to_le_bytes();
            }
        }
        CodeFormat::BF16 | CodeFormat::F16 => {
            let (keep, set) = match codes {
                CodeFormat::BF16 => (0x81ff, 0x3c00),
                _ => (0x8fff, 0x2000),
            };
            for code in bytes.as_chunks_mut().0 {
                *code = ((u16::from_le_bytes(*code) & keep) | set).to_le_bytes();
            }
        }
        CodeFormat::F8E4M3 => {
            for code in bytes {
                let is_nan = *code & 0x7f == 0x7f;
                *code ^= u8::from(is_nan);
            }
        }
        // All codes of the others are finite.
        _ => {}
    }
}

fn grid(scales: Scales, shape: [usize; 2]) -> ([usize; 2], [usize; 2]) {
    let block = [0, 1].map(|axis| match scales.block[axis] {
        0 => shape[axis],
        size => size,
    });
    (block, [0, 1].map(|axis| shape[axis].div_ceil(block[axis])))
}

/// Scales of `size / 2` to `3 size / 2`, or the powers of two around it.
fn random_scales(
    scales: Scales,
    shape: [usize; 2],
    size: f32,
    rng: &mut impl Rng,
) -> Result<ScaleGrid, QuantError> {
    let (block, blocks) = grid(scales, shape);
    let mut random = vec![0; blocks[0] * blocks[1]];
    rng.fill_bytes(&mut random);
    let between = |r: u8| size * (0.5 + f32::from(r) / 256.0);
    let bytes: Vec<u8> = match scales.format {
        // The exponent of the size, and one more or less.
        ScaleFormat::F8E8M0 => {
            let exponent = (size.to_bits() >> 23) as u8;
            random.iter().map(|r| exponent - 1 + r % 3).collect()
        }
        // 0.5 to 1.875: the codes of eight mantissas under two exponents.
        ScaleFormat::F8E4M3 => random.iter().map(|r| 0x30 + r % 16).collect(),
        ScaleFormat::BF16 => {
            let code = |r: &u8| half::bf16::from_f32(between(*r)).to_le_bytes();
            random.iter().flat_map(code).collect()
        }
        _ => random
            .iter()
            .flat_map(|r| between(*r).to_le_bytes())
            .collect(),
    };
    let width = scales.format.bytes();
    let strides = [blocks[1] * width, width];
    ScaleGrid::new(scales.format, blocks, block, strides, bytes.into())
}

/// Zero points of -3 to 4, between the ends of a nibble less 8.
fn random_zero_points(
    scales: Scales,
    shape: [usize; 2],
    rng: &mut impl Rng,
) -> Result<ScaleGrid, QuantError> {
    let (block, blocks) = grid(scales, shape);
    let mut bytes = vec![0; blocks[0] * blocks[1]];
    rng.fill_bytes(&mut bytes);
    for byte in &mut bytes {
        *byte = (*byte % 8).wrapping_sub(3);
    }
    ScaleGrid::new(ScaleFormat::I8, blocks, block, [blocks[1], 1], bytes.into())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn weights_are_finite_and_of_the_size_that_keeps_activations_in_range() {
        let shape: Shape = "200,136,2,1".parse().unwrap();
        for format in WeightFormat::value_variants() {
            let experts = random_experts(&shape, *format, 1, 2, || {}).unwrap();
            for linear in experts.experts.iter().flat_map(|e| e.linears()) {
                let mut row = vec![0.0; linear.weight.cols()];
                let mut squares = 0.0;
                for r in 0..linear.weight.rows() {
                    linear.weight.dequantize_row(r, &mut row).unwrap();
                    squares += row.iter().map(|w| w * w).sum::<f32>();
                }
                let gain = (squares / linear.weight.rows() as f32).sqrt();
                assert!((0.3..3.0).contains(&gain), "{format:?} {gain}");
                let bits = 8 * linear.weight.num_bytes() / (linear.weight.rows() * row.len());
                let least = format.codes().bits();
                assert!((least..least + 3).contains(&bits), "{format:?} {bits}");
            }
        }
    }

    #[test]
    fn weights_depend_on_the_seed_and_not_on_the_threads() {
        let shape: Shape = "32,16,5,1".parse().unwrap();
        let codes = |seed, threads| -> Vec<Bytes> {
            let experts = random_experts(&shape, WeightFormat::Bf16, seed, threads, || {}).unwrap();
            let up = |e: &Arc<ExpertMlp>| e.up.weight.codes().clone();
            experts.experts.iter().map(up).collect()
        };
        assert_eq!(codes(1, 1), codes(1, 3));
        assert_ne!(codes(1, 1), codes(2, 1));
        assert_ne!(codes(1, 1)[0], codes(1, 1)[1]);
    }
}
