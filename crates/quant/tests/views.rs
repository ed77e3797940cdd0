//! Views of bytes: whatever their sizes, they stay within the bytes, and parts of them are what the
//! whole holds there.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use bytes::Bytes;
use moekit_quant::{CodeFormat, ExpertLinear, ExpertMlp, PackedMatrix, ScaleFormat, ScaleGrid};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

const FORMATS: [CodeFormat; 8] = [
    CodeFormat::F32,
    CodeFormat::F16,
    CodeFormat::BF16,
    CodeFormat::F8E4M3,
    CodeFormat::I8,
    CodeFormat::I8Offset,
    CodeFormat::I4Offset,
    CodeFormat::F4E2M1,
];

/// Mostly sizes that fit, some that overflow.
fn size() -> impl Strategy<Value = usize> {
    prop_oneof![9 => 0_usize..9, 1 => select(vec![usize::MAX, usize::MAX / 2, 1 << 33])]
}

fn pair() -> impl Strategy<Value = [usize; 2]> {
    (size(), size()).prop_map(|(a, b)| [a, b])
}

proptest! {
    #[test]
    fn views_stay_within_their_bytes(
        format in select(FORMATS.to_vec()),
        (shape, strides) in (pair(), pair()),
        bytes in vec(any::<u8>(), 0..160),
        (grid, block, grid_strides, phase) in (pair(), pair(), pair(), pair()),
        [row, col] in pair(),
    ) {
        let bytes = Bytes::from(bytes);
        let scales = ScaleGrid::new(ScaleFormat::F16, grid, block, grid_strides, bytes.clone());
        if let Ok(scales) = &scales {
            let _ = (scales.num_bytes(), scales.get(row, col), scales.at(row, col));
        }
        let Ok(mut matrix) = PackedMatrix::new(format, shape, strides, bytes) else {
            return Ok(());
        };
        if let Ok(scales) = scales
            && let Ok(scaled) = matrix.clone().with_scales(scales.with_phase(phase))
        {
            matrix = scaled;
        }
        let _ = (matrix.num_bytes(), matrix.row_codes(row));
        prop_assert!(matrix.slice(row..shape[0], 0..shape[1]).is_ok() == (row < shape[0]));
        // Strides of 0 make a matrix of any size from a few bytes.
        if shape[1] < 1000 {
            let mut out = vec![0.0; shape[1]];
            prop_assert_eq!(matrix.dequantize_row(row, &mut out).is_ok(), row < shape[0]);
        }
    }

    /// A part of a matrix, scales, zero points and all, is that part of its weights.
    #[test]
    fn parts_are_what_the_whole_holds(
        format in select(FORMATS.to_vec()),
        transposed in any::<bool>(),
        block in (1_usize..5, 1_usize..5),
        (first, last) in ((0_usize..9, 0_usize..7), (0_usize..9, 0_usize..7)),
        seed in any::<u8>(),
    ) {
        let shape @ [rows, cols] = [9, 14];
        let (block, seed) = ([block.0, block.1], usize::from(seed));
        let noise = |i: usize| ((i + 1) * (seed + 41) % 60) as u8 + 1;
        let codes: Bytes = (0..rows * cols * 4).map(noise).collect();
        let strides = match (format.bytes(), transposed) {
            (Some(bytes), true) => [bytes, bytes * rows],
            (Some(bytes), false) => [bytes * cols, bytes],
            (None, _) => [cols / 2, 0],
        };
        let grid = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let whole = |format, noise: fn(u8) -> u8| {
            let bytes = (0..grid[0] * grid[1]).map(|i| noise((i * 7 + seed) as u8)).collect();
            ScaleGrid::new(format, grid, block, [grid[1], 1], bytes).unwrap()
        };
        let matrix = PackedMatrix::new(format, shape, strides, codes).unwrap()
            .with_scales(whole(ScaleFormat::F8E8M0, |i| 120 + i % 16)).unwrap()
            .with_zero_points(whole(ScaleFormat::I8, |i| i)).unwrap()
            .with_global_scale(0.5);
        // Columns in pairs, so that nibbles begin a byte.
        let rows = first.0.min(last.0)..first.0.max(last.0) + 1;
        let cols = 2 * first.1.min(last.1)..2 * first.1.max(last.1) + 1;
        let part = matrix.slice(rows.clone(), cols.clone()).unwrap();
        prop_assert!(part.num_bytes() <= matrix.num_bytes());
        for (i, r) in rows.enumerate() {
            let (mut all, mut own) = (vec![0.0; 14], vec![0.0; cols.len()]);
            matrix.dequantize_row(r, &mut all).unwrap();
            part.dequantize_row(i, &mut own).unwrap();
            let bits = |row: &[f32]| row.iter().map(|w| w.to_bits()).collect::<Vec<_>>();
            prop_assert_eq!(bits(&own), bits(&all[cols.clone()]));
            // A part of a part begins within blocks that were cut already.
            let from = cols.len() / 4 * 2;
            let last = part.slice(i..part.rows(), from..cols.len()).unwrap();
            let mut end = vec![0.0; cols.len() - from];
            last.dequantize_row(0, &mut end).unwrap();
            prop_assert_eq!(bits(&end), bits(&own[from..]));
        }
    }
}

#[test]
fn parts_that_are_none_are_refused() {
    let codes = Bytes::from(vec![0; 32]);
    let matrix = PackedMatrix::contiguous(CodeFormat::F4E2M1, [8, 8], codes).unwrap();
    for (rows, cols) in [(0..9, 0..8), (0..8, 0..9), (3..3, 0..8), (0..8, 3..5)] {
        assert!(
            matrix.slice(rows.clone(), cols.clone()).is_err(),
            "{rows:?} {cols:?}"
        );
    }
    let error = matrix.slice(0..8, 3..5).unwrap_err().to_string();
    assert!(error.contains("column 3 begins within a byte"), "{error}");
}

/// The parts of an expert add up to the expert.
#[test]
fn parts_of_an_expert() {
    let linear = |rows: usize, cols: usize| {
        let codes: Bytes = (0..rows * cols).map(|i| i as u8).collect();
        let mut linear = ExpertLinear::new(
            PackedMatrix::contiguous(CodeFormat::I8, [rows, cols], codes).unwrap(),
        );
        linear.bias = Some((0..rows).map(|r| r as f32).collect());
        linear
    };
    let whole = ExpertMlp::new(Some(linear(6, 4)), linear(6, 4), linear(4, 6)).unwrap();
    let parts = [0..2, 2..5, 5..6].map(|range| whole.slice(range).unwrap());
    assert_eq!(
        parts.each_ref().map(ExpertMlp::intermediate_size),
        [2, 3, 1]
    );
    assert_eq!(parts[1].up.bias.as_deref(), Some(&[2.0, 3.0, 4.0][..]));
    let biases = parts.each_ref().map(|part| part.down.bias.is_some());
    assert_eq!(biases, [true, false, false]);
    let mut row = [0.0; 3];
    parts[1].down.weight.dequantize_row(1, &mut row).unwrap();
    assert_eq!(row, [8.0, 9.0, 10.0]);
    assert!(whole.slice(4..7).is_err());
}
