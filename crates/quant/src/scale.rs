use std::ops::Range;

use bytes::Bytes;

use crate::{QuantError, ScaleFormat};

/// Scales (or zero points) of a matrix: one per block of `block[0] × block[1]` weights.
///
/// One form for all: per tensor `[N, K]`, per channel `[1, K]`, per group `[1, g]`, per block
/// `[bn, bk]`. The last block of a row or column of blocks may be partial. A matrix that is cut out
/// of a larger one may begin within a block: weight `(r, c)` belongs to block
/// `((r + phase[0]) / block[0], (c + phase[1]) / block[1])`.
#[derive(Clone, Debug)]
pub struct ScaleGrid {
    format: ScaleFormat,
    shape: [usize; 2],
    block: [usize; 2],
    phase: [usize; 2],
    strides: [usize; 2],
    bytes: Bytes,
}

impl ScaleGrid {
    /// A grid over little-endian bytes.
    ///
    /// # Arguments
    ///
    /// - `shape` - blocks along rows and columns.
    /// - `block` - weights of a block along rows and columns.
    /// - `strides` - bytes from one block to the next along rows and columns; 0 repeats one scale.
    ///
    /// # Errors
    ///
    /// If a size is 0 or the bytes end before the last scale.
    pub fn new(
        format: ScaleFormat,
        shape: [usize; 2],
        block: [usize; 2],
        strides: [usize; 2],
        bytes: Bytes,
    ) -> Result<Self, QuantError> {
        let error = |reason: String| QuantError::matrix(shape, format.name(), reason);
        if shape.contains(&0) || block.contains(&0) {
            return Err(error(format!(
                "a grid of scales needs at least one block of at least one weight, got blocks of {block:?}"
            )));
        }
        let end = span(shape, strides, format.bytes());
        if end.is_none_or(|end| end > bytes.len()) {
            return Err(error(format!(
                "{} bytes of scales do not reach strides of {strides:?} bytes",
                bytes.len()
            )));
        }
        Ok(Self {
            format,
            shape,
            block,
            phase: [0, 0],
            strides,
            bytes,
        })
    }

    /// One scale for a whole matrix of `[rows, cols]`.
    ///
    /// # Errors
    ///
    /// As [`ScaleGrid::new`].
    pub fn per_tensor(
        format: ScaleFormat,
        matrix: [usize; 2],
        bytes: Bytes,
    ) -> Result<Self, QuantError> {
        Self::new(format, [1, 1], matrix, [0, 0], bytes)
    }

    /// The same scales for a matrix whose first weight is number `phase` of its block, counted from
    /// 0 and modulo the size of a block.
    #[must_use]
    pub fn with_phase(mut self, phase: [usize; 2]) -> Self {
        self.phase = [0, 1].map(|axis| phase[axis] % self.block[axis]);
        self
    }

    /// How a scale is stored.
    pub fn format(&self) -> ScaleFormat {
        self.format
    }

    /// Blocks along rows and columns.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Weights of a block along rows and columns.
    pub fn block(&self) -> [usize; 2] {
        self.block
    }

    /// Where in its block the first weight lies.
    pub fn phase(&self) -> [usize; 2] {
        self.phase
    }

    /// Bytes from one block to the next along rows and columns.
    pub fn strides(&self) -> [usize; 2] {
        self.strides
    }

    /// The bytes, from the first block on.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// Bytes that the distinct scales take.
    pub fn num_bytes(&self) -> usize {
        let distinct = |axis: usize| match self.strides[axis] {
            0 => 1,
            _ => self.shape[axis],
        };
        distinct(0) * distinct(1) * self.format.bytes()
    }

    /// The scale of a block, `None` if there is no such block.
    pub fn get(&self, block_row: usize, block_col: usize) -> Option<f32> {
        if block_row >= self.shape[0] || block_col >= self.shape[1] {
            return None;
        }
        let at = block_row * self.strides[0] + block_col * self.strides[1];
        self.format.decode(self.bytes.get(at..)?)
    }

    /// The scale of weight `(row, col)`, `None` if the grid does not reach it.
    pub fn at(&self, row: usize, col: usize) -> Option<f32> {
        self.get(self.block_of(0, row), self.block_of(1, col))
    }

    /// The block of index `index` along an axis (0 rows, 1 columns).
    pub(crate) fn block_of(&self, axis: usize, index: usize) -> usize {
        index.saturating_add(self.phase[axis]) / self.block[axis]
    }

    /// Where in its block an index lies: `(index + phase) % block` without overflow.
    fn phase_of(&self, axis: usize, index: usize) -> usize {
        let (phase, block) = (self.phase[axis], self.block[axis]);
        let (within, to_end) = (index % block, block - phase);
        match within.checked_sub(to_end) {
            Some(next) => next,
            None => within + phase,
        }
    }

    /// The first block whose scale is NaN or infinite, and that scale.
    pub(crate) fn not_finite(&self) -> Option<([usize; 2], f32)> {
        let not_finite = |at: [usize; 2]| {
            let scale = self.get(at[0], at[1]).unwrap_or(f32::NAN);
            (!scale.is_finite()).then_some((at, scale))
        };
        self.suspicious_blocks().find_map(not_finite)
    }

    /// The blocks whose scale is 0, of scales of more than one byte.
    pub(crate) fn zeros(&self) -> impl Iterator<Item = [usize; 2]> {
        let blocks = self.suspicious_blocks();
        blocks.filter(|&[r, c]| self.format.bytes() > 1 && self.get(r, c) == Some(0.0))
    }

    /// The blocks of the rows that hold a scale which is not finite, or 0: of most grids none.
    fn suspicious_blocks(&self) -> impl Iterator<Item = [usize; 2]> {
        let rows = (0..self.shape[0]).filter(|&row| self.is_suspicious(row));
        rows.flat_map(|row| (0..self.shape[1]).map(move |col| [row, col]))
    }

    fn is_suspicious(&self, row: usize) -> bool {
        let (start, bytes) = (row * self.strides[0], self.format.bytes());
        if self.strides[1] != bytes {
            return true;
        }
        let Some(codes) = self.bytes.get(start..start + self.shape[1] * bytes) else {
            return true;
        };
        match self.format {
            ScaleFormat::F32 => any(codes, |code| {
                let magnitude = u32::from_le_bytes(code) & 0x7fff_ffff;
                magnitude == 0 || magnitude >= 0x7f80_0000
            }),
            ScaleFormat::F16 => any(codes, |code| {
                let magnitude = u16::from_le_bytes(code) & 0x7fff;
                magnitude == 0 || magnitude >= 0x7c00
            }),
            ScaleFormat::BF16 => any(codes, |code| {
                let magnitude = u16::from_le_bytes(code) & 0x7fff;
                magnitude == 0 || magnitude >= 0x7f80
            }),
            ScaleFormat::F8E4M3 => any(codes, |[code]| code & 0x7f == 0x7f),
            ScaleFormat::F8E8M0 => any(codes, |[code]| code == 0xff),
            ScaleFormat::I8 => false,
        }
    }

    /// The weights along an axis that belong to a block, of `len` in all.
    pub(crate) fn range(&self, axis: usize, block: usize, len: usize) -> Range<usize> {
        let edge = |block: usize| block.saturating_mul(self.block[axis]);
        let start = edge(block).saturating_sub(self.phase[axis]);
        let end = edge(block.saturating_add(1)).saturating_sub(self.phase[axis]);
        start.min(len)..end.min(len)
    }

    /// The blocks of a part of the matrix, given by its rows and columns.
    pub(crate) fn slice(&self, part: &[Range<usize>; 2]) -> Result<Self, QuantError> {
        let first = [0, 1].map(|axis| self.block_of(axis, part[axis].start));
        let last = [0, 1].map(|axis| self.block_of(axis, part[axis].end.saturating_sub(1)));
        let shape = [0, 1].map(|axis| last[axis] - first[axis] + 1);
        let start = first[0] * self.strides[0] + first[1] * self.strides[1];
        let bytes = self.bytes.slice(start..);
        let grid = Self::new(self.format, shape, self.block, self.strides, bytes)?;
        Ok(grid.with_phase([0, 1].map(|axis| self.phase_of(axis, part[axis].start))))
    }

    pub(crate) fn covers(&self, rows: usize, cols: usize) -> bool {
        self.block_of(0, rows.saturating_sub(1)) < self.shape[0]
            && self.block_of(1, cols.saturating_sub(1)) < self.shape[1]
    }
}

/// Whether any code of `N` bytes is one of those; written so that it becomes vector code.
fn any<const N: usize>(codes: &[u8], is: impl Fn([u8; N]) -> bool) -> bool {
    let found = |found, code: &[u8; N]| found | is(*code);
    codes.as_chunks().0.iter().fold(false, found)
}

/// End of the last element of a strided view; `None` if the sizes overflow.
pub(crate) fn span(shape: [usize; 2], strides: [usize; 2], last: usize) -> Option<usize> {
    let rows = (shape[0].checked_sub(1)?).checked_mul(strides[0])?;
    let cols = (shape[1].checked_sub(1)?).checked_mul(strides[1])?;
    rows.checked_add(cols)?.checked_add(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn f32s(values: &[f32]) -> Bytes {
        values.iter().flat_map(|v| v.to_le_bytes()).collect()
    }

    #[test]
    fn partial_edge_blocks_and_phase() {
        let bytes = f32s(&[1.0, 2.0, 3.0, 4.0]);
        let grid = ScaleGrid::new(ScaleFormat::F32, [2, 2], [4, 3], [8, 4], bytes).unwrap();
        assert_eq!(grid.at(3, 2), Some(1.0));
        assert_eq!(grid.at(4, 3), Some(4.0));
        assert_eq!(grid.at(8, 0), None);
        assert!(grid.covers(5, 4) && !grid.covers(9, 4) && !grid.covers(5, 7));
        let huge = ScaleGrid {
            block: [usize::MAX, usize::MAX],
            ..grid.clone()
        };
        let huge = huge.with_phase([usize::MAX - 1, usize::MAX]);
        assert_eq!((huge.at(0, 0), huge.at(1, 0)), (Some(1.0), Some(3.0)));
        let part = huge.slice(&[0..9, 3..4]).unwrap();
        assert_eq!((part.at(0, 0), part.at(1, 0)), (Some(1.0), Some(3.0)));
        assert_eq!(huge.slice(&[3..9, 3..4]).unwrap().at(5, 0), Some(3.0));
        let cut = grid.with_phase([3, 1]);
        assert_eq!(cut.at(0, 0), Some(1.0));
        assert_eq!(cut.at(1, 2), Some(4.0));
    }

    #[test]
    fn one_scale_for_all() {
        let grid = ScaleGrid::per_tensor(ScaleFormat::F32, [5, 7], f32s(&[0.5])).unwrap();
        assert_eq!(grid.at(4, 6), Some(0.5));
        assert_eq!(grid.num_bytes(), 4);
    }

    /// Every code of every format is finite, zero or neither, in dense and in strided rows.
    #[test]
    fn bad_scales_are_found() {
        for format in [
            ScaleFormat::F8E4M3,
            ScaleFormat::F8E8M0,
            ScaleFormat::F16,
            ScaleFormat::BF16,
        ] {
            let size = format.bytes();
            for code in 0..1_u32 << (8 * size) {
                let one = if size == 1 { vec![0x38] } else { vec![0, 0x3c] };
                let bytes = [&one[..], &one, &code.to_le_bytes()[..size], &one].concat();
                for strides in [[2 * size, size], [size, 2 * size]] {
                    let at = if strides[1] == size { [1, 0] } else { [0, 1] };
                    let grid =
                        ScaleGrid::new(format, [2, 2], [1, 1], strides, bytes.clone().into());
                    let grid = grid.unwrap();
                    let scale = grid.get(at[0], at[1]).unwrap();
                    let found = grid.not_finite().map(|(at, _)| at);
                    assert_eq!(
                        found,
                        (!scale.is_finite()).then_some(at),
                        "{format} {code:#x}"
                    );
                    let zero = (scale == 0.0 && size > 1).then_some(at);
                    assert_eq!(grid.zeros().collect::<Vec<_>>(), Vec::from_iter(zero));
                }
            }
        }
        for (value, zero) in [
            (f32::NAN, false),
            (f32::INFINITY, false),
            (-0.0, true),
            (1e-45, false),
        ] {
            let grid = ScaleGrid::new(
                ScaleFormat::F32,
                [1, 3],
                [1, 1],
                [0, 4],
                f32s(&[1.0, value, 2.0]),
            );
            let grid = grid.unwrap();
            assert_eq!(grid.not_finite().is_some(), !value.is_finite(), "{value}");
            assert_eq!(grid.zeros().count(), usize::from(zero), "{value}");
        }
    }

    #[test]
    fn too_few_bytes_are_refused() {
        let grid = |shape, strides| {
            ScaleGrid::new(ScaleFormat::F32, shape, [1, 1], strides, f32s(&[1.0; 4]))
        };
        assert!(grid([2, 2], [8, 4]).is_ok());
        assert!(grid([2, 2], [12, 4]).is_err());
        assert!(grid([0, 2], [8, 4]).is_err());
        assert!(grid([usize::MAX, 2], [8, 4]).is_err());
        assert!(ScaleGrid::new(ScaleFormat::F32, [1, 1], [0, 1], [0, 0], f32s(&[1.0])).is_err());
    }
}
