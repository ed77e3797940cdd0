use std::ops::Range;

use bytes::Bytes;

use super::LinearSite;
use super::cut::Cut;
use crate::{
    CodeFormat, ExpertLinear, PackedMatrix, QuantError, ScaleFormat, ScaleGrid, TensorDtype,
    TensorInfo, TensorSource,
};

/// The types of tensors that hold scales as floats, and how to read each.
pub const FLOAT_SCALES: &[(TensorDtype, ScaleFormat)] = &[
    (TensorDtype::F32, ScaleFormat::F32),
    (TensorDtype::BF16, ScaleFormat::BF16),
    (TensorDtype::F16, ScaleFormat::F16),
];
/// The types of tensors that hold scales as 8-bit floats.
pub const F8E4M3_SCALES: &[(TensorDtype, ScaleFormat)] =
    &[(TensorDtype::F8E4M3, ScaleFormat::F8E4M3)];
/// The types of tensors that hold scales as powers of two; a `u8` is the exponent.
pub const F8E8M0_SCALES: &[(TensorDtype, ScaleFormat)] = &[
    (TensorDtype::F8E8M0, ScaleFormat::F8E8M0),
    (TensorDtype::U8, ScaleFormat::F8E8M0),
];

impl LinearSite {
    /// Type and shape of a tensor that the linear needs.
    ///
    /// # Errors
    ///
    /// If there is no such tensor, or its sizes overflow.
    pub fn info(&self, tensors: &dyn TensorSource, name: &str) -> Result<TensorInfo, QuantError> {
        let info = tensors.info(name).ok_or_else(|| self.missing(name))?;
        match info.num_bytes() {
            Some(_) => Ok(info),
            None => Err(shape_error(
                name,
                &info,
                "sizes whose product is a number of bytes",
            )),
        }
    }

    pub(super) fn missing(&self, name: &str) -> QuantError {
        QuantError::MissingTensor {
            tensor: name.to_owned(),
            needed: format!("it belongs to the linear `{}`", self.module),
        }
    }

    /// The codes of the linear: a view of the tensor, except for nibbles in a transposed tensor,
    /// which are copied into rows.
    ///
    /// # Arguments
    ///
    /// - `name` - the tensor. Its last sizes make up one row of codes (`[.., in]`, packed
    ///   `[.., in / 2]`, in blocks `[.., in / 32, 16]`), those before are `[out]`, `[E, out]` or
    ///   `[E * out]`; a transposed tensor is `[.., in, out]`, packed `[.., in / 2, out]`.
    /// - `dtypes` - the types that hold such codes.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, its type or shape is another, or nibbles begin within a byte.
    pub fn codes(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
        format: CodeFormat,
        dtypes: &[TensorDtype],
    ) -> Result<PackedMatrix, QuantError> {
        let info = self.info(tensors, name)?;
        if !dtypes.contains(&info.dtype) {
            return Err(dtype_error(name, &info, dtypes));
        }
        // Two nibbles along the input features make one element of one byte.
        let pair = if format.is_nibble() { 2 } else { 1 };
        let unit = info.dtype.bits();
        let [out, within] = self.stored;
        let (rows, elements, row_bytes) = if self.transposed {
            let bytes = format.bytes().unwrap_or(1);
            (within.div_ceil(pair), out, out.saturating_mul(bytes))
        } else {
            // A row ends on a whole element of the tensor: an i32 holds eight nibbles.
            let elements = within.saturating_mul(format.bits()).div_ceil(unit);
            (out, elements, elements.saturating_mul(unit) / 8)
        };
        self.check_rows(name, &info, rows, elements)?;
        if !self.start[1].is_multiple_of(pair) || !(elements * unit).is_multiple_of(8) {
            return Err(self.unsupported("a view from an odd nibble on", "from an even one on"));
        }
        let cut = Cut {
            stored_rows: rows,
            row_bytes,
            bytes: format.bytes().unwrap_or(1),
            shape: [self.shape[0], self.shape[1].div_ceil(pair)],
            start: [self.start[0], self.start[1] / pair],
            row_step: self.row_step,
            index: self.stack.map_or(0, |(index, _)| index),
            transposed: self.transposed,
        };
        let (range, strides) = cut.locate();
        let codes = tensors.read(name, range)?;
        match self.transposed && format.is_nibble() {
            true => PackedMatrix::contiguous(format, self.shape, in_rows(&codes, &cut, strides)),
            false => PackedMatrix::new(format, self.shape, strides, codes),
        }
    }

    /// Scales of the linear, one per block of `[out, in]` weights of the stored matrix. A block that
    /// is larger than the matrix is all of it: `[usize::MAX; 2]` is per tensor, `[1, usize::MAX]`
    /// per channel.
    ///
    /// # Arguments
    ///
    /// - `name` - the tensor: `[ceil(out / block[0]), ceil(in / block[1])]` in the order of the
    ///   stored matrix, after the experts of a stack; sizes of 1 may be left out or added. A stack
    ///   may share one scale.
    /// - `blocks` - the blocks that the format allows; the first that fits the shape is taken.
    /// - `formats` - the types that hold such scales and how to read each.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, its type or shape is another, its blocks cannot be cut to the
    /// linear, or a scale is not finite.
    pub fn scales(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
        blocks: &[[usize; 2]],
        formats: &[(TensorDtype, ScaleFormat)],
    ) -> Result<ScaleGrid, QuantError> {
        let info = self.info(tensors, name)?;
        let Some((_, format)) = formats.iter().find(|(dtype, _)| *dtype == info.dtype) else {
            let dtypes: Vec<_> = formats.iter().map(|(dtype, _)| *dtype).collect();
            return Err(dtype_error(name, &info, &dtypes));
        };
        let clamped = blocks
            .iter()
            .map(|block| [0, 1].map(|axis| block[axis].clamp(1, self.stored[axis])));
        let fitting = clamped.clone().find_map(|block| {
            self.fits(&info, self.grid(block))
                .map(|shared| (block, shared))
        });
        let Some((block, shared)) = fitting else {
            let expected: Vec<_> = clamped.map(|block| self.told(self.grid(block))).collect();
            return Err(shape_error(name, &info, expected.join(" or ")));
        };
        let (rows, block_rows, row_step) = self.row_blocks(block[0])?;
        let cols = self.start[1] / block[1]..(self.start[1] + self.shape[1]).div_ceil(block[1]);
        let [stored_rows, stored_cols] = self.in_stored_order(self.grid(block));
        let cut = Cut {
            stored_rows,
            row_bytes: stored_cols * format.bytes(),
            bytes: format.bytes(),
            shape: [rows.len().div_ceil(row_step), cols.len()],
            start: [rows.start, cols.start],
            row_step,
            index: self.stack.filter(|_| !shared).map_or(0, |(index, _)| index),
            transposed: self.transposed,
        };
        let (range, strides) = cut.locate();
        let bytes = tensors.read(name, range)?;
        let grid = ScaleGrid::new(*format, cut.shape, [block_rows, block[1]], strides, bytes)?;
        if let Some((at, value)) = grid.not_finite() {
            return Err(QuantError::Scale {
                name: name.to_owned(),
                at: at.to_vec(),
                value,
                reason: "it must be finite",
            });
        }
        // Of interleaved rows, the first of a block begins it.
        let phase = if self.row_step == 1 {
            self.start[0] % block[0]
        } else {
            0
        };
        Ok(grid.with_phase([phase, self.start[1] % block[1]]))
    }

    /// The weight with the bias of the linear, if it has one.
    ///
    /// # Errors
    ///
    /// If the bias is missing or has another type or shape, or a scale of 0 makes codes vanish.
    pub fn linear(
        &self,
        tensors: &dyn TensorSource,
        weight: PackedMatrix,
    ) -> Result<ExpertLinear, QuantError> {
        if let Some(at) = weight.vanishing_block() {
            return Err(QuantError::Scale {
                name: self.module.clone(),
                at: at.to_vec(),
                value: 0.0,
                reason: "its block holds codes that are not 0",
            });
        }
        let mut linear = ExpertLinear::new(weight);
        linear.bias = self.bias(tensors)?;
        Ok(linear)
    }

    fn in_stored_order(&self, size: [usize; 2]) -> [usize; 2] {
        match self.transposed {
            true => [size[1], size[0]],
            false => size,
        }
    }

    fn check_rows(
        &self,
        name: &str,
        info: &TensorInfo,
        rows: usize,
        elements: usize,
    ) -> Result<(), QuantError> {
        let leading = match self.stack {
            None => vec![vec![rows]],
            Some((_, count)) => vec![vec![count, rows], vec![count.saturating_mul(rows)]],
        };
        let fits = (1..=info.shape.len()).any(|split| {
            let (head, tail) = info.shape.split_at(split);
            let row = tail
                .iter()
                .try_fold(1_usize, |n, &size| n.checked_mul(size));
            row == Some(elements) && leading.iter().any(|l| l == head)
        });
        if fits {
            return Ok(());
        }
        let expected = match self.stack {
            None => format!("[{rows}, {elements}]"),
            Some((_, count)) => format!("[{count}, {rows}, {elements}]"),
        };
        Err(shape_error(name, info, expected))
    }

    /// Blocks of the stored matrix along out and in.
    fn grid(&self, block: [usize; 2]) -> [usize; 2] {
        [0, 1].map(|axis| self.stored[axis].div_ceil(block[axis]))
    }

    fn told(&self, grid: [usize; 2]) -> String {
        let [rows, cols] = self.in_stored_order(grid);
        match self.stack {
            None => format!("[{rows}, {cols}]"),
            Some((_, count)) => format!("[{count}, {rows}, {cols}]"),
        }
    }

    /// Whether the tensor is a grid of scales (per expert of a stack), and if so, whether a stack
    /// shares it.
    fn fits(&self, info: &TensorInfo, grid: [usize; 2]) -> Option<bool> {
        let squeeze = |sizes: &[usize]| -> Vec<usize> {
            sizes.iter().copied().filter(|&size| size != 1).collect()
        };
        let [rows, cols] = self.in_stored_order(grid);
        let got = squeeze(&info.shape);
        let own = got == squeeze(&[rows, cols]);
        let Some((_, count)) = self.stack else {
            return own.then_some(false);
        };
        let all = [
            vec![count, rows, cols],
            vec![count.saturating_mul(rows), cols],
        ];
        match all.iter().any(|shape| got == squeeze(shape)) {
            true => Some(false),
            // One scale for the whole tensor is one for each of its experts.
            false => (own && rows == 1 && cols == 1).then_some(true),
        }
    }

    /// Rows of blocks that the linear touches, the rows of the linear in one of them, and the
    /// distance of its blocks.
    fn row_blocks(&self, block: usize) -> Result<(Range<usize>, usize, usize), QuantError> {
        let end = self.start[0] + (self.shape[0] - 1) * self.row_step + 1;
        let blocks = self.start[0] / block..end.div_ceil(block);
        if self.row_step == 1 || block == 1 {
            return Ok((blocks, block, self.row_step));
        }
        if block >= self.stored[0] {
            return Ok((blocks, self.shape[0], 1));
        }
        if block.is_multiple_of(self.row_step) {
            return Ok((blocks, block / self.row_step, 1));
        }
        let what = format!("blocks of {block} interleaved rows");
        Err(self.unsupported(
            &what,
            &format!("blocks of a multiple of {} rows", self.row_step),
        ))
    }
}

/// The bytes of a part row by row.
fn in_rows(bytes: &[u8], cut: &Cut, strides: [usize; 2]) -> Bytes {
    let row = |r: usize| (0..cut.shape[1]).map(move |c| r * strides[0] + c * strides[1]);
    let offsets = (0..cut.shape[0]).flat_map(row);
    offsets.filter_map(|at| bytes.get(at).copied()).collect()
}

pub(super) fn dtype_error(name: &str, info: &TensorInfo, dtypes: &[TensorDtype]) -> QuantError {
    let expected: Vec<_> = dtypes.iter().map(ToString::to_string).collect();
    QuantError::Dtype {
        tensor: name.to_owned(),
        got: info.dtype.to_string(),
        expected: expected.join(" or "),
    }
}

pub(super) fn shape_error(
    name: &str,
    info: &TensorInfo,
    expected: impl Into<String>,
) -> QuantError {
    QuantError::Shape {
        tensor: name.to_owned(),
        got: info.shape.clone(),
        expected: expected.into(),
    }
}
