use std::ops::Range;

use bytes::Bytes;

use crate::scale::span;
use crate::spec::MAX_SIZE;
use crate::{CodeFormat, QuantError, ScaleGrid};

/// The weight of one linear of one expert, `[rows, cols]` = `[out, in]`, in the checkpoint's own
/// precision.
///
/// A weight is `(code - zero_point) * scale * global_scale`, computed in `f32` as
/// `(code - zero_point) * (scale * global_scale)`.
///
/// Code `(r, c)` of a whole-byte format lies at byte `r * row_stride + c * col_stride`. The codes of
/// a nibble format lie at byte `r * row_stride + c / 2`, the even column in the low nibble. With
/// these strides the halves of a fused `[2 * I, H]` matrix, its interleaved rows and a transposed
/// `[H, I]` matrix are views of the file, not copies. Nothing is said of alignment: a mapped file
/// may put a tensor at any address.
///
/// ```
/// use bytes::Bytes;
/// use moekit_quant::{CodeFormat, PackedMatrix, ScaleFormat, ScaleGrid};
///
/// // Two rows of four E2M1 codes with one scale per row.
/// let codes = Bytes::from_static(&[0x21, 0x43, 0x65, 0x87]);
/// let scales = Bytes::from_static(&[127, 128]);
/// let grid = ScaleGrid::new(ScaleFormat::F8E8M0, [2, 1], [1, 4], [1, 0], scales)?;
/// let matrix = PackedMatrix::contiguous(CodeFormat::F4E2M1, [2, 4], codes)?.with_scales(grid)?;
///
/// let mut row = [0.0; 4];
/// matrix.dequantize_row(1, &mut row)?;
/// assert_eq!(row, [6.0, 8.0, 12.0, -0.0]);
/// assert_eq!(matrix.num_bytes(), 6);
/// # Ok::<(), moekit_quant::QuantError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PackedMatrix {
    format: CodeFormat,
    shape: [usize; 2],
    strides: [usize; 2],
    codes: Bytes,
    scales: Option<ScaleGrid>,
    zero_points: Option<ScaleGrid>,
    global_scale: f32,
}

impl PackedMatrix {
    /// A strided view of codes.
    ///
    /// # Arguments
    ///
    /// - `shape` - `[rows, cols]`.
    /// - `strides` - bytes from row to row and from column to column; the second is not used by
    ///   nibble formats, whose rows are dense.
    /// - `codes` - begins with code `(0, 0)`.
    ///
    /// # Errors
    ///
    /// If a size is 0 or the bytes end before the last code.
    pub fn new(
        format: CodeFormat,
        shape: [usize; 2],
        strides: [usize; 2],
        codes: Bytes,
    ) -> Result<Self, QuantError> {
        let error = |reason: String| QuantError::matrix(shape, format.name(), reason);
        if shape.iter().any(|size| !(1..=MAX_SIZE).contains(size)) {
            return Err(error(format!("it needs 1 to {MAX_SIZE} rows and columns")));
        }
        let end = match format.bytes() {
            Some(bytes) => span(shape, strides, bytes),
            None => span([shape[0], 1], strides, format.row_bytes(shape[1])),
        };
        if end.is_none_or(|end| end > codes.len()) {
            return Err(error(format!(
                "{} bytes of codes do not reach strides of {strides:?} bytes",
                codes.len()
            )));
        }
        Ok(Self {
            format,
            shape,
            strides,
            codes,
            scales: None,
            zero_points: None,
            global_scale: 1.0,
        })
    }

    /// Rows without gaps.
    ///
    /// # Errors
    ///
    /// As [`PackedMatrix::new`].
    pub fn contiguous(
        format: CodeFormat,
        shape: [usize; 2],
        codes: Bytes,
    ) -> Result<Self, QuantError> {
        let strides = [format.row_bytes(shape[1]), format.bytes().unwrap_or(0)];
        Self::new(format, shape, strides, codes)
    }

    /// Multiplies every weight by the scale of its block.
    ///
    /// # Errors
    ///
    /// If the grid does not reach the last weight.
    pub fn with_scales(mut self, scales: ScaleGrid) -> Result<Self, QuantError> {
        self.check_grid("scales", &scales)?;
        self.scales = Some(scales);
        Ok(self)
    }

    /// Subtracts from every code the zero point of its block.
    ///
    /// # Errors
    ///
    /// If the grid does not reach the last weight.
    pub fn with_zero_points(mut self, zero_points: ScaleGrid) -> Result<Self, QuantError> {
        self.check_grid("zero points", &zero_points)?;
        self.zero_points = Some(zero_points);
        Ok(self)
    }

    /// Multiplies every scale: the second level of NVFP4.
    #[must_use]
    pub fn with_global_scale(mut self, global_scale: f32) -> Self {
        self.global_scale = global_scale;
        self
    }

    /// A part of the matrix: a view of the same bytes.
    ///
    /// # Errors
    ///
    /// If a range is empty or leaves the matrix, or columns begin within a byte of nibbles.
    pub fn slice(&self, rows: Range<usize>, cols: Range<usize>) -> Result<Self, QuantError> {
        let ranges = [&rows, &cols];
        for (range, size) in ranges.into_iter().zip(self.shape) {
            if range.is_empty() || range.end > size {
                return Err(self.error(format!("{range:?} is not a part of 0..{size}")));
            }
        }
        let pair = if self.format.is_nibble() { 2 } else { 1 };
        if !cols.start.is_multiple_of(pair) {
            return Err(self.error(format!("column {} begins within a byte", cols.start)));
        }
        let within = match self.format.bytes() {
            Some(_) => cols.start * self.strides[1],
            None => cols.start / 2,
        };
        let first = rows.start * self.strides[0] + within;
        let shape = [rows.len(), cols.len()];
        let mut part = Self::new(self.format, shape, self.strides, self.codes.slice(first..))?;
        let grid = |grid: &ScaleGrid| grid.slice(&[rows.clone(), cols.clone()]);
        part.scales = self.scales.as_ref().map(grid).transpose()?;
        part.zero_points = self.zero_points.as_ref().map(grid).transpose()?;
        part.global_scale = self.global_scale;
        Ok(part)
    }

    fn error(&self, reason: String) -> QuantError {
        QuantError::matrix(self.shape, self.format.name(), reason)
    }

    fn check_grid(&self, what: &str, grid: &ScaleGrid) -> Result<(), QuantError> {
        if grid.covers(self.shape[0], self.shape[1]) {
            return Ok(());
        }
        Err(self.error(format!(
            "{:?} blocks of {:?} {what} do not cover it",
            grid.shape(),
            grid.block()
        )))
    }

    /// How a code is stored.
    pub fn format(&self) -> CodeFormat {
        self.format
    }

    /// Output features.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Input features.
    pub fn cols(&self) -> usize {
        self.shape[1]
    }

    /// Bytes from one row to the next.
    pub fn row_stride(&self) -> usize {
        self.strides[0]
    }

    /// Bytes from one column to the next; `None` for nibbles, two columns of which share a byte.
    pub fn col_stride(&self) -> Option<usize> {
        self.format.bytes().map(|_| self.strides[1])
    }

    /// The bytes, from code `(0, 0)` on. What lies between the codes of a view is not part of the
    /// matrix.
    pub fn codes(&self) -> &Bytes {
        &self.codes
    }

    /// The codes of a row whose columns lie side by side; `None` if they do not, or there is no
    /// such row.
    pub fn row_codes(&self, row: usize) -> Option<&[u8]> {
        let dense = self
            .format
            .bytes()
            .is_none_or(|bytes| self.strides[1] == bytes);
        if !dense || row >= self.rows() {
            return None;
        }
        let start = row * self.strides[0];
        self.codes
            .get(start..start + self.format.row_bytes(self.cols()))
    }

    /// The scales, `None` if all are 1.
    pub fn scales(&self) -> Option<&ScaleGrid> {
        self.scales.as_ref()
    }

    /// The zero points, `None` if all are 0.
    pub fn zero_points(&self) -> Option<&ScaleGrid> {
        self.zero_points.as_ref()
    }

    /// What every scale is multiplied by; 1 where a format has one level of scales.
    pub fn global_scale(&self) -> f32 {
        self.global_scale
    }

    /// Bytes that codes, scales and zero points take, without what lies between them.
    pub fn num_bytes(&self) -> usize {
        let grids = [&self.scales, &self.zero_points];
        let grids: usize = grids.into_iter().flatten().map(ScaleGrid::num_bytes).sum();
        let global = if self.global_scale == 1.0 {
            0
        } else {
            size_of::<f32>()
        };
        let codes = self
            .rows()
            .saturating_mul(self.format.row_bytes(self.cols()));
        codes.saturating_add(grids + global)
    }

    /// The code at `(row, col)` as a number, without zero point and scale.
    fn code(&self, row: usize, col: usize) -> Option<f32> {
        if row >= self.rows() || col >= self.cols() {
            return None;
        }
        if self.format.is_nibble() {
            let byte = *self.codes.get(row * self.strides[0] + col / 2)?;
            let nibble = if col.is_multiple_of(2) {
                byte
            } else {
                byte >> 4
            };
            return self.format.decode(&[nibble]);
        }
        let at = row * self.strides[0] + col * self.strides[1];
        self.format.decode(self.codes.get(at..)?)
    }

    /// The first block whose scale is 0 although its codes are not: the scale of damaged or
    /// uncalibrated weights. One-byte scales are not looked at: those of blocks that are small
    /// beside the second level underflow to 0 rightly.
    pub(crate) fn vanishing_block(&self) -> Option<[usize; 2]> {
        let scales = self.scales.as_ref()?;
        let vanishes = |&[block_row, block_col]: &[usize; 2]| {
            let cols = || scales.range(1, block_col, self.cols());
            let mut rows = scales.range(0, block_row, self.rows());
            rows.any(|row| cols().any(|col| self.difference(row, col) != Some(0.0)))
        };
        scales.zeros().find(vanishes)
    }

    /// Writes the weights of a row as `f32`. This is the reference that kernels are held to, not
    /// the fast way.
    ///
    /// # Arguments
    ///
    /// - `out` - `[cols]`.
    ///
    /// # Errors
    ///
    /// If there is no such row or `out` has another length.
    pub fn dequantize_row(&self, row: usize, out: &mut [f32]) -> Result<(), QuantError> {
        if out.len() != self.cols() {
            return Err(QuantError::Argument {
                what: "length of the row buffer",
                got: out.len(),
                expected: format!("{} columns", self.cols()),
            });
        }
        for (col, out) in out.iter_mut().enumerate() {
            *out = self.weight(row, col).ok_or_else(|| QuantError::Argument {
                what: "row",
                got: row,
                expected: format!("less than {} rows", self.rows()),
            })?;
        }
        Ok(())
    }

    /// The code as a number, less its zero point.
    fn difference(&self, row: usize, col: usize) -> Option<f32> {
        let code = self.code(row, col)?;
        match &self.zero_points {
            Some(zero_points) => Some(code - zero_points.at(row, col)?),
            None => Some(code),
        }
    }

    fn weight(&self, row: usize, col: usize) -> Option<f32> {
        let value = self.difference(row, col)?;
        Some(match &self.scales {
            Some(scales) => value * (scales.at(row, col)? * self.global_scale),
            None => value * self.global_scale,
        })
    }
}
