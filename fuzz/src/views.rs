//! Strided views of codes and scales.

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use moekit_kernels::dequantize;
use moekit_quant::{CodeFormat, PackedMatrix, ScaleFormat, ScaleGrid};

use crate::pick::pick;

pub(crate) const CODES: &[CodeFormat] = &[
    CodeFormat::F32,
    CodeFormat::F16,
    CodeFormat::BF16,
    CodeFormat::F8E4M3,
    CodeFormat::I8,
    CodeFormat::I8Offset,
    CodeFormat::I4Offset,
    CodeFormat::F4E2M1,
];

const SCALES: &[ScaleFormat] = &[
    ScaleFormat::F32,
    ScaleFormat::F16,
    ScaleFormat::BF16,
    ScaleFormat::F8E4M3,
    ScaleFormat::F8E8M0,
    ScaleFormat::I8,
];

/// Values of the largest matrix that is looked at one by one.
const MAX_AREA: usize = 1 << 14;

/// Makes views of any sizes, and parts of them; the fast way to `f32` and the plain one must agree.
pub fn views(data: &[u8]) {
    let _ = run(&mut Unstructured::new(data));
}

fn run(u: &mut Unstructured<'_>) -> Result<()> {
    let Some(matrix) = matrix(u)? else {
        return Ok(());
    };
    if matrix.rows().saturating_mul(matrix.cols()) > MAX_AREA {
        return Ok(());
    }
    let whole = compare(&matrix);
    let mut range = |end: usize| -> Result<_> {
        let start = u.int_in_range(0..=end)?;
        Ok(start..u.int_in_range(start..=end + 1)?)
    };
    let (rows, cols) = (range(matrix.rows())?, range(matrix.cols())?);
    let inside = !rows.is_empty() && !cols.is_empty();
    let inside = inside && rows.end <= matrix.rows() && cols.end <= matrix.cols();
    let Ok(part) = matrix.slice(rows.clone(), cols.clone()) else {
        assert!(!inside || matrix.format().is_nibble() && cols.start % 2 == 1);
        return Ok(());
    };
    assert!(inside);
    let values = compare(&part);
    for (r, row) in values.chunks(part.cols()).enumerate() {
        let start = (rows.start + r) * matrix.cols() + cols.start;
        assert_eq!(row, &whole[start..start + part.cols()]);
    }
    Ok(())
}

/// The bits of all weights.
fn compare(matrix: &PackedMatrix) -> Vec<u32> {
    let fast = dequantize(matrix);
    let mut row = vec![0.0; matrix.cols()];
    for (r, fast) in fast.chunks(matrix.cols()).enumerate() {
        matrix.dequantize_row(r, &mut row).expect("the row exists");
        assert_eq!(bits(fast), bits(&row));
    }
    bits(&fast)
}

/// One bit pattern for every NaN.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |v: &f32| if v.is_nan() { u32::MAX } else { v.to_bits() };
    values.iter().map(bits).collect()
}

fn matrix(u: &mut Unstructured<'_>) -> Result<Option<PackedMatrix>> {
    let shape = [length(u)?, length(u)?];
    let strides = [length(u)?, length(u)?];
    let codes = bytes(u)?;
    let format = pick(u, CODES)?;
    let matrix = match u.arbitrary()? {
        true => PackedMatrix::new(format, shape, strides, codes),
        false => PackedMatrix::contiguous(format, shape, codes),
    };
    let Ok(mut matrix) = matrix else {
        return Ok(None);
    };
    for is_scale in [true, false] {
        if u.arbitrary()? {
            let Some(grid) = grid(u)? else {
                continue;
            };
            let with = match is_scale {
                true => matrix.clone().with_scales(grid),
                false => matrix.clone().with_zero_points(grid),
            };
            matrix = with.unwrap_or(matrix);
        }
    }
    Ok(Some(matrix.with_global_scale(pick(
        u,
        &[1.0, 1.0, 0.5, 3.0, f32::NAN],
    )?)))
}

fn grid(u: &mut Unstructured<'_>) -> Result<Option<ScaleGrid>> {
    let shape = [length(u)?, length(u)?];
    let block = [length(u)?, length(u)?];
    let strides = [length(u)?, length(u)?];
    let grid = ScaleGrid::new(pick(u, SCALES)?, shape, block, strides, bytes(u)?);
    let phase = match u.ratio(1, 4)? {
        true => [length(u)?, length(u)?],
        false => [0, 0],
    };
    Ok(grid.ok().map(|grid| grid.with_phase(phase)))
}

fn length(u: &mut Unstructured<'_>) -> Result<usize> {
    match u.int_in_range(0..=15)? {
        0 => u.arbitrary(),
        1 => pick(u, &[0, 1 << 31, usize::MAX, usize::MAX / 2]),
        2 => pick(u, &[16, 32, 64]),
        _ => u.int_in_range(1..=9),
    }
}

fn bytes(u: &mut Unstructured<'_>) -> Result<Bytes> {
    let noise = u.arbitrary::<[u8; 7]>()?;
    let len = u.int_in_range(0..=1500)?;
    Ok(noise.iter().cycle().copied().take(len).collect())
}
