//! Weights in the checkpoint's precision to `f32`, a few rows at a time.

use half::{bf16, f16};
use moekit_quant::{CodeFormat, PackedMatrix, ScaleGrid, f4e2m1_values, f8e4m3_values};

use crate::rows::Widen;

/// All weights of a matrix as `f32`, `[rows, cols]`, with the bits that
/// [`PackedMatrix::dequantize_row`] gives.
pub fn dequantize(matrix: &PackedMatrix) -> Vec<f32> {
    let mut out = vec![0.0; matrix.rows() * matrix.cols()];
    dequantize_rows(matrix, 0, &mut out);
    out
}

/// Writes rows `first..first + out.len() / cols` of a matrix as `f32`, with the bits that
/// [`PackedMatrix::dequantize_row`] gives. The rows must exist.
pub(crate) fn dequantize_rows(matrix: &PackedMatrix, first: usize, out: &mut [f32]) {
    let cols = matrix.cols();
    if !decode_rows(matrix, first, out) {
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            // The row exists and has the length of a row, so that there is no error to pass on.
            matrix.dequantize_row(first + i, row).unwrap_or_default();
        }
        return;
    }
    for (i, row) in out.chunks_exact_mut(cols).enumerate() {
        if let Some(zero_points) = matrix.zero_points() {
            for_each_block(zero_points, first + i, row, |values, zero| {
                values.iter_mut().for_each(|v| *v -= zero);
            });
        }
        let global = matrix.global_scale();
        match matrix.scales() {
            Some(scales) => for_each_block(scales, first + i, row, |values, scale| {
                let scale = scale * global;
                values.iter_mut().for_each(|v| *v *= scale);
            }),
            None if global != 1.0 => row.iter_mut().for_each(|v| *v *= global),
            None => {}
        }
    }
}

/// Calls `apply(values, entry)` for each run of a row that shares an entry of the grid.
fn for_each_block(
    grid: &ScaleGrid,
    row: usize,
    mut values: &mut [f32],
    mut apply: impl FnMut(&mut [f32], f32),
) {
    let width = grid.block()[1];
    let mut run = width - grid.phase()[1] % width;
    let mut col = 0;
    while !values.is_empty() {
        let (block, rest) = values.split_at_mut(run.min(values.len()));
        // A matrix takes no grid that does not cover it, so the entry is there.
        apply(block, grid.at(row, col).unwrap_or(f32::NAN));
        // A block may be wider than numbers go; then it is the last one.
        col = col.saturating_add(run);
        values = rest;
        run = width;
    }
}

/// Writes the codes as numbers; `false` if the format has no loop here.
fn decode_rows(matrix: &PackedMatrix, first: usize, out: &mut [f32]) -> bool {
    match matrix.format() {
        CodeFormat::F32 => decode(matrix, first, out, f32::from_le_bytes),
        CodeFormat::F16 => decode(matrix, first, out, |b| f16::from_le_bytes(b).to_f32()),
        CodeFormat::BF16 => decode(matrix, first, out, |b| bf16::from_le_bytes(b).widen()),
        CodeFormat::F8E4M3 => {
            let table = f8e4m3_values();
            decode(matrix, first, out, |[b]| table[usize::from(b)]);
        }
        CodeFormat::I8 => decode(matrix, first, out, |[b]| f32::from(b.cast_signed())),
        CodeFormat::I8Offset => {
            decode(matrix, first, out, |[b]| {
                f32::from(b.wrapping_sub(128).cast_signed())
            });
        }
        CodeFormat::I4Offset => {
            decode_nibbles(matrix, first, out, |n| f32::from(n.cast_signed() - 8));
        }
        CodeFormat::F4E2M1 => {
            let table = f4e2m1_values();
            decode_nibbles(matrix, first, out, |n| table[usize::from(n)]);
        }
        _ => return false,
    }
    true
}

/// Formats of `N` bytes: dense rows in order; strided ones (a transposed matrix) column by column,
/// because there the rows of a block lie side by side.
fn decode<const N: usize>(
    matrix: &PackedMatrix,
    first: usize,
    out: &mut [f32],
    value: impl Fn([u8; N]) -> f32,
) {
    let cols = matrix.cols();
    if matrix.col_stride() == Some(N) {
        for (i, row) in out.chunks_exact_mut(cols).enumerate() {
            let codes = matrix.row_codes(first + i).unwrap_or_default();
            for (out, &code) in row.iter_mut().zip(codes.as_chunks::<N>().0) {
                *out = value(code);
            }
        }
        return;
    }
    let (row_stride, col_stride) = (matrix.row_stride(), matrix.col_stride().unwrap_or(0));
    let rows = out.len() / cols;
    for col in 0..cols {
        for row in 0..rows {
            let at = (first + row) * row_stride + col * col_stride;
            if let Some(&code) = matrix.codes().get(at..).and_then(<[u8]>::first_chunk) {
                out[row * cols + col] = value(code);
            }
        }
    }
}

fn decode_nibbles(matrix: &PackedMatrix, first: usize, out: &mut [f32], value: impl Fn(u8) -> f32) {
    for (i, row) in out.chunks_exact_mut(matrix.cols()).enumerate() {
        let codes = matrix.row_codes(first + i).unwrap_or_default();
        for (pair, &code) in row.chunks_mut(2).zip(codes) {
            for (out, nibble) in pair.iter_mut().zip([code & 15, code >> 4]) {
                *out = value(nibble);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::test_weights::{FORMATS, Noise};

    /// Every format, dense and transposed, odd sizes, blocks cut at every edge.
    #[test]
    fn same_bits_as_the_reference() {
        let mut noise = Noise::new(1);
        for format in FORMATS {
            for [rows, cols] in [[1, 1], [7, 13], [16, 32], [5, 64]] {
                for transposed in [false, true] {
                    let matrix = noise.matrix(format, [rows, cols], transposed);
                    let all = dequantize(&matrix);
                    let mut expected = vec![0.0; cols];
                    for (row, got) in all.chunks_exact(cols).enumerate() {
                        matrix.dequantize_row(row, &mut expected).unwrap();
                        let bits = |values: &[f32]| -> Vec<u32> {
                            values.iter().map(|v| v.to_bits()).collect()
                        };
                        assert_eq!(bits(got), bits(&expected), "{format} row {row}");
                    }
                    let mut tail = vec![0.0; cols];
                    dequantize_rows(&matrix, rows - 1, &mut tail);
                    assert_eq!(tail, all[(rows - 1) * cols..]);
                }
            }
        }
    }
}
