//! How a matrix lies in memory: panels of 32 output columns, features in order.

use std::ops::Range;

use half::{bf16, f16};
use moekit_quant::{
    CodeFormat, PackedMatrix, ScaleFormat, ScaleGrid, f4e2m1_values, f8e4m3_values,
};
use serde::{Deserialize, Serialize};

use crate::memory::{ALIGN, Arena};
use crate::rows::Widen;
use crate::simd::{LANES, nibble_place, pair_place};

/// Features are padded with zeros to a multiple of this, the most that a kernel takes at once.
pub(crate) const FEATURES: usize = 4;

/// What the bytes of a prepared matrix mean. It follows from format and shape alone, never from
/// the instruction set.
///
/// Panel `p` holds the output features `32 p ..` of all input features: codes, scales, zero points,
/// each from a multiple of 64 bytes on. Codes of a few input features lie together, in the order
/// in which [`Layout::place`] and [`nibble_place`] put them: that of the vectors which a kernel
/// makes of them. 8-bit integers are there as their value plus 128, which dot products of bytes
/// take without sign. Scales that all input features share are there as loops take them: as `f32`,
/// one per output feature, that of the whole matrix included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Layout {
    pub(crate) codes: CodeFormat,
    /// Output features.
    pub(crate) rows: usize,
    /// Input features.
    pub(crate) cols: usize,
    pub(crate) scales: Option<Grid>,
    pub(crate) zero_points: Option<Grid>,
    /// The bits of an `f32`, which text would not keep if it is NaN.
    global_scale: u32,
    /// Whether all rows are one, and all panels too: what stands in for an expert that is not there
    /// takes next to no memory.
    repeated: bool,
}

/// Scales (or zero points) of a panel: for each group of input features one per output feature, or
/// one for the panel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Grid {
    pub(crate) format: ScaleFormat,
    /// Input features of a group.
    pub(crate) group: usize,
    /// Where in its group the first feature lies.
    pub(crate) phase: usize,
    /// Whether the output features of a panel share their scales.
    pub(crate) shared: bool,
}

impl Grid {
    fn new(grid: &ScaleGrid, rows: usize, cols: usize) -> Self {
        let ([block_rows, block_cols], phase) = (grid.block(), grid.phase());
        // Blocks wider than the matrix are as good as blocks of its width that begin elsewhere.
        let group = block_cols.min(cols);
        let first_run = (block_cols - phase[1] % block_cols).min(cols);
        let aligned = block_rows % LANES == 0 && phase[0] % LANES == 0;
        let one_block = rows <= block_rows - phase[0] % block_rows;
        Self {
            format: grid.format(),
            group,
            phase: group - first_run,
            shared: aligned || one_block || grid.strides()[0] == 0,
        }
    }

    /// Whether all input features are one group.
    pub(super) fn is_one(&self, cols: usize) -> bool {
        self.phase + cols <= self.group
    }

    fn groups(&self, cols: usize) -> usize {
        (self.phase + cols).div_ceil(self.group)
    }

    /// Scales of a group.
    fn per_group(&self) -> usize {
        if self.shared { 1 } else { LANES }
    }

    /// Bytes of the scales of a group.
    pub(super) fn bytes_of_group(self) -> usize {
        self.per_group() * self.format.bytes()
    }

    fn bytes(&self, cols: usize) -> usize {
        self.groups(cols) * self.bytes_of_group()
    }

    /// Calls `apply(features, scales of the 32 columns)` for each group that has some of them.
    fn for_each_group(
        &self,
        bytes: &[u8],
        features: &Range<usize>,
        mut apply: impl FnMut(Range<usize>, [f32; LANES]),
    ) {
        let size = self.format.bytes();
        let decode = |at: usize| {
            let code = bytes.get(at * size..).unwrap_or_default();
            self.format.decode(code).unwrap_or(f32::NAN)
        };
        let mut start = features.start;
        while start < features.end {
            let group = (start + self.phase) / self.group;
            let end = ((group + 1) * self.group - self.phase).min(features.end);
            let scales = match self.shared {
                true => [decode(group); LANES],
                false => std::array::from_fn(|lane| decode(group * LANES + lane)),
            };
            apply(start..end, scales);
            start = end;
        }
    }
}

/// Where the sections of a panel begin, and its end.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sections {
    pub(crate) scales: usize,
    pub(crate) zero_points: usize,
    pub(crate) end: usize,
}

impl Layout {
    pub(crate) fn new(matrix: &PackedMatrix) -> Self {
        let (rows, cols) = (matrix.rows(), matrix.cols());
        let grid = |grid: &ScaleGrid| Grid::new(grid, rows, cols);
        let (mut scales, mut global_scale) = (matrix.scales().map(grid), matrix.global_scale());
        if let Some(grid) = scales.as_mut().filter(|grid| grid.is_one(cols)) {
            (grid.format, grid.shared, global_scale) = (ScaleFormat::F32, false, 1.0);
        }
        Self {
            codes: matrix.format(),
            rows,
            cols,
            scales,
            zero_points: matrix.zero_points().map(grid),
            global_scale: global_scale.to_bits(),
            repeated: matrix.row_stride() == 0
                && matrix.scales().is_none()
                && matrix.zero_points().is_none(),
        }
    }

    pub(crate) fn global_scale(&self) -> f32 {
        f32::from_bits(self.global_scale)
    }

    /// Whether a weight is its code.
    pub(crate) fn is_plain(&self) -> bool {
        self.scales.is_none() && self.zero_points.is_none() && self.global_scale() == 1.0
    }

    pub(crate) fn panels(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Panels in memory: of repeated ones the first.
    pub(crate) fn stored_panels(&self) -> usize {
        if self.repeated { 1 } else { self.panels() }
    }

    /// Input features, padding included.
    pub(crate) fn features(&self) -> usize {
        self.cols.next_multiple_of(FEATURES)
    }

    /// Where the code of an input feature and a column of a panel lies, for codes of whole bytes:
    /// those of as many features as dot products take at once lie side by side for a column, then
    /// those of the next column. Pairs of E4M3 have an [order](pair_place) of their own.
    fn place(&self, feature: usize, column: usize) -> usize {
        let side = match self.codes {
            CodeFormat::F32 | CodeFormat::F16 => 1,
            CodeFormat::I8 | CodeFormat::I8Offset => 4,
            CodeFormat::F8E4M3 => return feature / 2 * 64 + pair_place(column, feature),
            _ => 2,
        };
        (feature / side * LANES + column) * side + feature % side
    }

    pub(crate) fn is_int8(&self) -> bool {
        matches!(self.codes, CodeFormat::I8 | CodeFormat::I8Offset)
    }

    pub(crate) fn sections(&self) -> Sections {
        let size = |grid: Option<Grid>| grid.map_or(0, |g| g.bytes(self.cols));
        let scales = (self.features() * LANES * self.codes.bits() / 8).next_multiple_of(ALIGN);
        let zero_points = (scales + size(self.scales)).next_multiple_of(ALIGN);
        let end = (zero_points + size(self.zero_points)).next_multiple_of(ALIGN);
        Sections {
            scales,
            zero_points,
            end,
        }
    }

    /// Bytes of all panels; `None` if the address space has fewer.
    pub(crate) fn num_bytes(&self) -> Option<usize> {
        // A weight and its share of scales and zero points take 12 bytes at most.
        let weights = self.features().checked_mul(self.panels() * LANES)?;
        weights
            .checked_mul(12)
            .filter(|n| *n <= isize::MAX as usize)?;
        Some(Arena::rounded(self.sections().end * self.stored_panels()))
    }

    /// Whether a matrix can have this layout: the check of what came from elsewhere.
    pub(crate) fn is_sound(&self) -> bool {
        let sizes = [self.rows, self.cols];
        let max = 1 << 31;
        let grid = |grid: &Grid| (1..=max).contains(&grid.group) && grid.phase < grid.group;
        sizes.iter().all(|size| (1..=max).contains(size))
            && self.scales.iter().chain(&self.zero_points).all(grid)
    }

    /// Writes a panel, which is all zeros.
    pub(crate) fn pack(&self, matrix: &PackedMatrix, panel: usize, out: &mut [u8]) {
        let sections = self.sections();
        let (codes, grids) = out.split_at_mut(sections.scales);
        match self.codes.bytes() {
            Some(4) => self.pack_codes::<4>(matrix, panel, codes),
            Some(2) => self.pack_codes::<2>(matrix, panel, codes),
            Some(_) => {
                self.pack_codes::<1>(matrix, panel, codes);
                if self.codes == CodeFormat::I8 {
                    codes.iter_mut().for_each(|code| *code ^= 0x80);
                }
            }
            None => self.pack_nibbles(matrix, panel, codes),
        }
        let (scales, zero_points) = grids.split_at_mut(sections.zero_points - sections.scales);
        if let (Some(grid), Some(from)) = (self.scales, matrix.scales()) {
            let decoded_by = grid.is_one(self.cols).then(|| matrix.global_scale());
            self.pack_grid(grid, from, panel, scales, decoded_by);
        }
        if let (Some(grid), Some(from)) = (self.zero_points, matrix.zero_points()) {
            self.pack_grid(grid, from, panel, zero_points, None);
        }
    }

    /// The scales of a panel if they are there as loops take them: 32 values.
    pub(crate) fn column_scales<'p>(&self, panel: &'p [u8]) -> Option<&'p [u8]> {
        let has = self.scales.is_some_and(|grid| grid.is_one(self.cols));
        let bytes = || &panel[self.sections().scales..][..LANES * size_of::<f32>()];
        (has && self.zero_points.is_none()).then(bytes)
    }

    fn pack_codes<const N: usize>(&self, matrix: &PackedMatrix, panel: usize, out: &mut [u8]) {
        const BLOCK: usize = 64;
        let (row_stride, col_stride) = (matrix.row_stride(), matrix.col_stride().unwrap_or(N));
        let (out, _) = out.as_chunks_mut::<N>();
        let lanes = LANES.min(self.rows - panel * LANES);
        // Blocks of features, so that the lines that 32 columns share are written together.
        for start in (0..self.cols).step_by(BLOCK) {
            for lane in 0..lanes {
                let from = (panel * LANES + lane) * row_stride;
                for k in start..self.cols.min(start + BLOCK) {
                    let at = from + k * col_stride;
                    if let Some(code) = matrix.codes().get(at..).and_then(<[u8]>::first_chunk) {
                        out[self.place(k, lane)] = *code;
                    }
                }
            }
        }
    }

    fn pack_nibbles(&self, matrix: &PackedMatrix, panel: usize, out: &mut [u8]) {
        let lanes = LANES.min(self.rows - panel * LANES);
        for lane in 0..lanes {
            let codes = matrix.row_codes(panel * LANES + lane).unwrap_or_default();
            let nibbles = codes.iter().flat_map(|code| [code & 15, code >> 4]);
            for (k, nibble) in nibbles.take(self.cols).enumerate() {
                let (byte, shift) = nibble_place(lane, k);
                out[k / 4 * 64 + byte] |= nibble << shift;
            }
        }
    }

    /// # Arguments
    ///
    /// - `decoded_by` - what scales are multiplied by that are there as `f32`.
    fn pack_grid(
        &self,
        grid: Grid,
        from: &ScaleGrid,
        panel: usize,
        out: &mut [u8],
        decoded_by: Option<f32>,
    ) {
        let size = from.format().bytes();
        let (strides, block, phase) = (from.strides(), from.block(), from.phase());
        let lanes = LANES.min(self.rows - panel * LANES);
        for group in 0..grid.groups(self.cols) {
            let col = (group * grid.group).saturating_sub(grid.phase);
            let block_col = (col + phase[1]) / block[1];
            for lane in 0..grid.per_group().min(lanes) {
                let block_row = (panel * LANES + lane + phase[0]) / block[0];
                let at = block_row * strides[0] + block_col * strides[1];
                let to = group * grid.per_group() + lane;
                let Some(code) = from.bytes().get(at..at + size) else {
                    continue;
                };
                match decoded_by {
                    Some(factor) => {
                        let scale = from.format().decode(code).unwrap_or(f32::NAN) * factor;
                        out[4 * to..][..4].copy_from_slice(&scale.to_le_bytes());
                    }
                    None => out[to * size..][..size].copy_from_slice(code),
                }
            }
        }
    }

    /// Writes the weights of some features of a panel as `f32`, `[features, 32]`, with the bits
    /// of [`PackedMatrix::dequantize_row`]; zeros beyond the last feature.
    pub(crate) fn unpack(&self, panel: &[u8], features: Range<usize>, out: &mut [f32]) {
        let (out, padding) =
            out.split_at_mut(features.end.min(self.cols).saturating_sub(features.start) * LANES);
        padding.fill(0.0);
        let features = features.start..features.end.min(self.cols);
        let sections = self.sections();
        self.decode(panel, features.start, out);
        let rows = |range: Range<usize>| {
            (range.start - features.start) * LANES..(range.end - features.start) * LANES
        };
        if let Some(grid) = self.zero_points {
            grid.for_each_group(&panel[sections.zero_points..], &features, |range, zeros| {
                for row in out[rows(range)].chunks_exact_mut(LANES) {
                    row.iter_mut().zip(zeros).for_each(|(v, zero)| *v -= zero);
                }
            });
        }
        let global = self.global_scale();
        match self.scales {
            Some(grid) => {
                grid.for_each_group(&panel[sections.scales..], &features, |range, scales| {
                    let scales = scales.map(|scale| scale * global);
                    for row in out[rows(range)].chunks_exact_mut(LANES) {
                        row.iter_mut()
                            .zip(scales)
                            .for_each(|(v, scale)| *v *= scale);
                    }
                });
            }
            None if global != 1.0 => out.iter_mut().for_each(|v| *v *= global),
            None => {}
        }
    }

    /// Codes as numbers.
    fn decode(&self, panel: &[u8], first: usize, out: &mut [f32]) {
        match self.codes {
            CodeFormat::F32 => self.decode_bytes(panel, first, out, f32::from_le_bytes),
            CodeFormat::F16 => {
                self.decode_bytes(panel, first, out, |b| f16::from_le_bytes(b).to_f32());
            }
            CodeFormat::BF16 => {
                self.decode_bytes(panel, first, out, |b| bf16::from_le_bytes(b).widen());
            }
            CodeFormat::F8E4M3 => {
                let table = f8e4m3_values();
                self.decode_bytes(panel, first, out, |[b]| table[usize::from(b)]);
            }
            CodeFormat::I8 | CodeFormat::I8Offset => {
                self.decode_bytes(panel, first, out, |[b]| {
                    f32::from(b.wrapping_sub(128).cast_signed())
                });
            }
            CodeFormat::F4E2M1 => {
                let table = f4e2m1_values();
                self.decode_nibbles(panel, first, out, |n| table[usize::from(n)]);
            }
            CodeFormat::I4Offset => {
                self.decode_nibbles(panel, first, out, |n| f32::from(n.cast_signed() - 8));
            }
            format => {
                let value = |n| format.decode(&[n]).unwrap_or(f32::NAN);
                match format.is_nibble() {
                    true => self.decode_nibbles(panel, first, out, value),
                    false => self.decode_bytes(panel, first, out, |[b]| value(b)),
                }
            }
        }
    }

    fn decode_bytes<const N: usize>(
        &self,
        panel: &[u8],
        first: usize,
        out: &mut [f32],
        value: impl Fn([u8; N]) -> f32,
    ) {
        let (codes, _) = panel.as_chunks::<N>();
        for (k, out) in (first..).zip(out.chunks_exact_mut(LANES)) {
            for (column, out) in out.iter_mut().enumerate() {
                *out = value(codes[self.place(k, column)]);
            }
        }
    }

    fn decode_nibbles(
        &self,
        panel: &[u8],
        first: usize,
        out: &mut [f32],
        value: impl Fn(u8) -> f32,
    ) {
        for (k, out) in (first..).zip(out.chunks_exact_mut(LANES)) {
            for (column, out) in out.iter_mut().enumerate() {
                let (byte, shift) = nibble_place(column, k);
                *out = value(panel[k / 4 * 64 + byte] >> shift & 15);
            }
        }
    }
}
