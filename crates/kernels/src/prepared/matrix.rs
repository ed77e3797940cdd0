use moekit_quant::PackedMatrix;
use rayon::prelude::*;

use super::layout::Layout;
use crate::KernelError;
use crate::memory::{Arena, Region};
use crate::simd::LANES;

/// The weight of a linear in the order in which the kernels read it.
#[derive(Debug)]
pub struct PreparedMatrix {
    layout: Layout,
    panel_bytes: usize,
    bytes: Region,
    has_nibble_zero_points: bool,
}

impl PreparedMatrix {
    /// Bytes that a matrix will take.
    pub(crate) fn size(matrix: &PackedMatrix) -> Result<usize, KernelError> {
        let (rows, width) = (matrix.rows(), matrix.cols());
        let what = "prepared weights";
        let too_large = KernelError::TooLarge { what, rows, width };
        Layout::new(matrix).num_bytes().ok_or(too_large)
    }

    /// Writes a matrix into memory of an arena.
    pub(crate) fn new(matrix: &PackedMatrix, arena: &mut Arena) -> Result<Self, KernelError> {
        let size = Self::size(matrix)?;
        let layout = Layout::new(matrix);
        let panel_bytes = layout.sections().end;
        let mut bytes = arena.take(size)?;
        bytes
            .par_chunks_exact_mut(panel_bytes)
            .enumerate()
            .for_each(|(panel, out)| layout.pack(matrix, panel, out));
        Ok(Self {
            has_nibble_zero_points: layout.has_nibble_zero_points(&bytes),
            layout,
            panel_bytes,
            bytes,
        })
    }

    /// A matrix of bytes that [`PreparedMatrix::bytes`] has given; `None` if they do not have the
    /// length that the layout needs.
    pub(super) fn from_parts(layout: Layout, bytes: Region) -> Option<Self> {
        let expected = layout.num_bytes()?;
        (bytes.len() == expected).then(|| Self {
            has_nibble_zero_points: layout.has_nibble_zero_points(&bytes),
            panel_bytes: layout.sections().end,
            layout,
            bytes,
        })
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether nibbles less their zero points are integers from -16 to 15.
    pub(crate) fn has_nibble_zero_points(&self) -> bool {
        self.has_nibble_zero_points
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(crate) fn panel(&self, panel: usize) -> &[u8] {
        let stored = panel.min(self.layout.stored_panels() - 1);
        &self.bytes[stored * self.panel_bytes..][..self.panel_bytes]
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.layout.rows
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.layout.cols
    }

    /// Bytes in memory, padding included.
    pub fn num_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// All weights as `f32`, `[rows, cols]`, with the bits that
    /// [`PackedMatrix::dequantize_row`] gives.
    pub fn dequantize(&self) -> Vec<f32> {
        const BLOCK: usize = 64;
        let (rows, cols) = (self.rows(), self.cols());
        let mut out = vec![0.0; rows * cols];
        let panels = out.par_chunks_mut(LANES * cols).enumerate();
        panels.for_each(|(panel, out)| {
            let mut block = [0.0; BLOCK * LANES];
            for first in (0..cols).step_by(BLOCK) {
                let features = first..cols.min(first + BLOCK);
                let block = &mut block[..features.len() * LANES];
                self.layout
                    .unpack(self.panel(panel), features.clone(), block);
                for (lane, row) in out.chunks_exact_mut(cols).enumerate() {
                    let values = block.iter().skip(lane).step_by(LANES);
                    row[features.clone()]
                        .iter_mut()
                        .zip(values)
                        .for_each(|(out, value)| *out = *value);
                }
            }
        });
        out
    }
}

#[cfg(test)]
mod tests {
    use moekit_quant::{ScaleFormat, ScaleGrid};

    use super::*;
    use crate::dequantize;
    use crate::test_weights::{FORMATS, Noise};

    pub(crate) fn prepared(matrix: &PackedMatrix) -> PreparedMatrix {
        let mut arena = Arena::new(PreparedMatrix::size(matrix).unwrap()).unwrap();
        PreparedMatrix::new(matrix, &mut arena).unwrap()
    }

    /// A block may be as wide as numbers go, and begin just before its end.
    #[test]
    fn blocks_beyond_all_sizes() {
        let floats = |values: &[f32]| -> bytes::Bytes {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        let scales = floats(&[2.0, 3.0]);
        let grid = ScaleGrid::new(ScaleFormat::F32, [1, 2], [1, usize::MAX], [8, 4], scales);
        let grid = grid.unwrap().with_phase([0, usize::MAX - 1]);
        let ones = floats(&[1.0; 3]);
        let matrix = PackedMatrix::contiguous(moekit_quant::CodeFormat::F32, [1, 3], ones);
        let matrix = matrix.unwrap().with_scales(grid).unwrap();
        assert_eq!(dequantize(&matrix), [2.0, 3.0, 3.0]);
        assert_eq!(prepared(&matrix).dequantize(), [2.0, 3.0, 3.0]);
    }

    /// Scales that all input features share are there as `f32`, that of the matrix included; zero
    /// points beside them are as they were.
    #[test]
    fn scales_of_columns_are_decoded_once() {
        let mut noise = Noise::new(24);
        let bytes = |values: &[f32]| -> bytes::Bytes {
            values.iter().flat_map(|v| v.to_le_bytes()).collect()
        };
        let scales: Vec<f32> = (0..33).map(|_| noise.unit()).collect();
        let codes: Vec<u8> = (0..33 * 8).map(|_| noise.bits() as u8).collect();
        let grid = |values: &[f32]| {
            ScaleGrid::new(ScaleFormat::F32, [33, 1], [1, 8], [4, 4], bytes(values)).unwrap()
        };
        for zero_points in [false, true] {
            let matrix = PackedMatrix::contiguous(
                moekit_quant::CodeFormat::I8,
                [33, 8],
                codes.clone().into(),
            );
            let mut matrix = matrix.unwrap().with_global_scale(0.3);
            matrix = matrix.with_scales(grid(&scales)).unwrap();
            if zero_points {
                matrix = matrix.with_zero_points(grid(&scales)).unwrap();
            }
            let prepared = prepared(&matrix);
            assert_eq!(prepared.dequantize(), dequantize(&matrix));
            let columns = prepared.layout().column_scales(prepared.panel(1));
            let last = (scales[32] * 0.3).to_le_bytes();
            let expected = (!zero_points).then_some(&last[..]);
            assert_eq!(columns.map(|scales| &scales[..4]), expected);
        }
    }

    #[test]
    fn equal_rows_are_stored_once() {
        let nan = bytes::Bytes::from_static(&[0, 0, 0xc0, 0x7f]);
        let matrix = PackedMatrix::new(moekit_quant::CodeFormat::F32, [500, 9], [0, 0], nan);
        let prepared = prepared(&matrix.unwrap());
        assert_eq!(prepared.num_bytes(), 12 * LANES * 4);
        assert!(prepared.dequantize().iter().all(|v| v.is_nan()));
    }

    #[test]
    fn every_format_comes_back_to_the_bit() {
        let mut noise = Noise::new(21);
        for format in FORMATS {
            for shape in [[1, 1], [7, 13], [32, 32], [33, 64], [70, 131]] {
                for transposed in [false, true] {
                    let matrix = noise.matrix(format, shape, transposed);
                    let bits = |v: Vec<f32>| v.into_iter().map(f32::to_bits).collect::<Vec<_>>();
                    assert_eq!(
                        bits(prepared(&matrix).dequantize()),
                        bits(dequantize(&matrix)),
                        "{format} {shape:?}"
                    );
                }
            }
        }
    }
}
