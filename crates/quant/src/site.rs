use std::ops::Range;

use crate::spec::FusedTensor;
use crate::{
    CodeFormat, ExpertLinear, PackedMatrix, QuantError, ScaleFormat, ScaleGrid, TensorDtype,
    TensorInfo, TensorSource,
};

/// Which linear of an expert.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Projection {
    /// The gate half of w13.
    Gate,
    /// The up half of w13.
    Up,
    /// w2.
    Down,
}

/// Where one linear of one expert is in a checkpoint.
///
/// The linear may be a tensor of its own, or a part of one: an expert of a stack, the rows of one
/// half, every other row, a transposed matrix. A backend asks a site for the tensors of its format
/// by their companion name (`weight`, `weight_scale`) and gets the part that belongs to the linear,
/// as a view, with type and shape checked; only the bytes of that part are read.
#[derive(Clone, Debug)]
pub struct LinearSite {
    pub(crate) module: String,
    pub(crate) is_module: bool,
    pub(crate) projection: Projection,
    /// `[out, in]` of the linear.
    pub(crate) shape: [usize; 2],
    /// `[out, in]` of the stored matrix that the linear is a part of.
    pub(crate) stored: [usize; 2],
    /// First row and column within the stored matrix.
    pub(crate) start: [usize; 2],
    /// Distance of the linear's rows within the stored matrix.
    pub(crate) row_step: usize,
    /// Whether the stored matrix lies as `[in, out]`.
    pub(crate) transposed: bool,
    /// Index and number of the stored matrices of one tensor.
    pub(crate) stack: Option<(usize, usize)>,
    pub(crate) bias: Option<String>,
}

impl LinearSite {
    pub(crate) fn own_tensor(module: String, projection: Projection, shape: [usize; 2]) -> Self {
        Self {
            module,
            is_module: true,
            projection,
            shape,
            stored: shape,
            start: [0, 0],
            row_step: 1,
            transposed: false,
            stack: None,
            bias: None,
        }
    }

    pub(crate) fn in_stack(
        tensor: &FusedTensor,
        projection: Projection,
        shape: [usize; 2],
        stack: (usize, usize),
    ) -> Self {
        Self {
            is_module: tensor.is_module,
            transposed: tensor.transposed,
            stack: Some(stack),
            bias: tensor.bias.clone(),
            ..Self::own_tensor(tensor.name.clone(), projection, shape)
        }
    }

    /// The module (or fused parameter) that holds the linear: what exclusion lists and targets of
    /// quantizers match.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Which linear of its expert this is.
    pub fn projection(&self) -> Projection {
        self.projection
    }

    /// `[out, in]`.
    pub fn shape(&self) -> [usize; 2] {
        self.shape
    }

    /// Whether the stored matrix lies as `[in, out]`.
    pub fn is_transposed(&self) -> bool {
        self.transposed
    }

    /// Whether the linear shares its tensors with other experts.
    pub fn is_stacked(&self) -> bool {
        self.stack.is_some()
    }

    /// Full name of a companion tensor: `weight`, `weight_scale`, ...
    pub fn tensor(&self, companion: &str) -> String {
        match (self.is_module, companion) {
            (true, _) => format!("{}.{companion}", self.module),
            (false, "weight") => self.module.clone(),
            (false, _) => format!("{}_{companion}", self.module),
        }
    }

    /// Type and shape of a tensor that the linear needs.
    ///
    /// # Errors
    ///
    /// If there is no such tensor.
    pub fn info(&self, tensors: &dyn TensorSource, name: &str) -> Result<TensorInfo, QuantError> {
        let info = tensors
            .info(name)
            .ok_or_else(|| QuantError::MissingTensor {
                tensor: name.to_owned(),
                needed: format!("it belongs to the linear `{}`", self.module),
            })?;
        match info.num_bytes() {
            Some(_) => Ok(info),
            None => Err(shape_error(
                name,
                &info,
                "sizes whose product is a number of bytes",
            )),
        }
    }

    /// The codes of the linear.
    ///
    /// # Arguments
    ///
    /// - `name` - the tensor. Its last sizes make up one row of codes (`[.., in]`, packed
    ///   `[.., in / 2]`, in blocks `[.., in / 32, 16]`), those before are `[out]`, `[E, out]` or
    ///   `[E * out]`; `in` and `out` change places in a transposed tensor.
    /// - `dtypes` - the types that hold such codes.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, its type or shape is another, or its layout cannot be viewed.
    pub fn codes(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
        format: CodeFormat,
        dtypes: &[TensorDtype],
    ) -> Result<PackedMatrix, QuantError> {
        let info = self.info(tensors, name)?;
        check_dtype(name, &info, dtypes)?;
        let unit = info.dtype.bits();
        let [rows, cols] = self.in_stored_order(self.stored);
        // A row ends on a whole element of the tensor (an i32 holds eight nibbles).
        let row_elements = cols.saturating_mul(format.bits()).div_ceil(unit);
        let row_bytes = row_elements.saturating_mul(unit) / 8;
        self.check_rows(name, &info, rows, row_elements)?;
        let odd = !self.start[1].is_multiple_of(2) || !(row_elements * unit).is_multiple_of(8);
        if format.is_nibble() && (self.transposed || odd) {
            return Err(QuantError::Unsupported {
                what: format!("a transposed or odd view of the nibbles of `{name}`"),
                supported: "nibbles along the input features, from an even one on".to_owned(),
            });
        }
        let mut cut = Cut {
            stored_rows: rows,
            row_bytes,
            bytes: 1,
            shape: self.shape,
            start: self.start,
            row_step: self.row_step,
            index: self.stack.map_or(0, |(index, _)| index),
        };
        match format.bytes() {
            Some(bytes) => cut.bytes = bytes,
            // Two columns make one element of one byte.
            None => {
                cut.shape[1] = cut.shape[1].div_ceil(2);
                cut.start[1] /= 2;
            }
        }
        let (range, strides) = cut.locate(self.transposed);
        PackedMatrix::new(format, self.shape, strides, tensors.read(name, range)?)
    }

    /// Scales of the linear, one per block of `block` = `[out, in]` weights of the stored matrix.
    ///
    /// # Arguments
    ///
    /// - `name` - the tensor: `[ceil(out / block[0]), ceil(in / block[1])]` in the order of the
    ///   stored matrix, after the experts of a stack; sizes of 1 may be left out or added. A stack
    ///   may share one scale.
    /// - `formats` - the types that hold such scales and how to read each.
    ///
    /// # Errors
    ///
    /// If the tensor is missing, its type or shape is another, or its blocks cannot be cut to the
    /// linear.
    pub fn scales(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
        block: [usize; 2],
        formats: &[(TensorDtype, ScaleFormat)],
    ) -> Result<ScaleGrid, QuantError> {
        let info = self.info(tensors, name)?;
        let dtypes: Vec<_> = formats.iter().map(|(dtype, _)| *dtype).collect();
        check_dtype(name, &info, &dtypes)?;
        let format = formats
            .iter()
            .find_map(|(dtype, format)| (*dtype == info.dtype).then_some(*format))
            .unwrap_or(ScaleFormat::F32);
        let block = [
            block[0].clamp(1, self.stored[0]),
            block[1].clamp(1, self.stored[1]),
        ];
        let grid = [0, 1].map(|axis| self.stored[axis].div_ceil(block[axis]));
        let shared = self.check_blocks(name, &info, grid)?;
        let (rows, block_rows, row_step) = self.row_blocks(name, block[0])?;
        let cols = self.start[1] / block[1]..(self.start[1] + self.shape[1]).div_ceil(block[1]);
        let phase = match row_step {
            1 => self.start[0] % block[0],
            _ => 0,
        };
        let shape = [rows.len().div_ceil(row_step), cols.len()];
        let [stored_rows, stored_cols] = self.in_stored_order(grid);
        let cut = Cut {
            stored_rows,
            row_bytes: stored_cols * format.bytes(),
            bytes: format.bytes(),
            shape,
            start: [rows.start, cols.start],
            row_step,
            index: self.stack.filter(|_| !shared).map_or(0, |(index, _)| index),
        };
        let (range, strides) = cut.locate(self.transposed);
        let bytes = tensors.read(name, range)?;
        let grid = ScaleGrid::new(format, shape, [block_rows, block[1]], strides, bytes)?;
        Ok(grid.with_phase([phase, self.start[1] % block[1]]))
    }

    /// A single number that belongs to the linear: a tensor of one element, or of one per expert
    /// of a stack. `None` if there is no such tensor.
    ///
    /// # Errors
    ///
    /// If its type is not a float or it has more elements.
    pub fn scalar(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
    ) -> Result<Option<f32>, QuantError> {
        let Some(info) = tensors.info(name) else {
            return Ok(None);
        };
        let (format, bytes) = float_format(name, &info)?;
        let index = match (info.num_elements(), self.stack) {
            (Some(1), _) => 0,
            (Some(n), Some((index, count))) if n == count => index,
            _ => {
                let stack = self.stack.map(|(_, count)| format!(" or [{count}]"));
                return Err(shape_error(
                    name,
                    &info,
                    format!("[1]{}", stack.unwrap_or_default()),
                ));
            }
        };
        let bytes = tensors.read(name, index * bytes..(index + 1) * bytes)?;
        Ok(format.decode(&bytes))
    }

    /// The bias of the linear as `f32`; `None` if it has none.
    ///
    /// # Errors
    ///
    /// If the layout promises a bias that is missing or has another type or shape.
    pub fn bias(&self, tensors: &dyn TensorSource) -> Result<Option<Vec<f32>>, QuantError> {
        let Some(name) = &self.bias else {
            return Ok(None);
        };
        let info = self.info(tensors, name)?;
        let (format, bytes) = float_format(name, &info)?;
        let count = self.stack.map_or(1, |(_, count)| count);
        if info.num_elements() != self.stored[0].checked_mul(count) {
            let expected = match self.stack {
                Some((_, count)) => format!("[{count}, {}]", self.stored[0]),
                None => format!("[{}]", self.stored[0]),
            };
            return Err(shape_error(name, &info, expected));
        }
        let first = self.stack.map_or(0, |(index, _)| index) * self.stored[0] + self.start[0];
        let last = first + (self.shape[0] - 1) * self.row_step;
        let read = tensors.read(name, first * bytes..(last + 1) * bytes)?;
        let values = read.chunks(bytes).step_by(self.row_step);
        Ok(Some(
            values.filter_map(|value| format.decode(value)).collect(),
        ))
    }

    /// The weight with the bias of the linear, if it has one.
    ///
    /// # Errors
    ///
    /// As [`LinearSite::bias`].
    pub fn linear(
        &self,
        tensors: &dyn TensorSource,
        weight: PackedMatrix,
    ) -> Result<ExpertLinear, QuantError> {
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
        row_elements: usize,
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
            row == Some(row_elements) && leading.iter().any(|l| l == head)
        });
        if fits {
            return Ok(());
        }
        let expected = match self.stack {
            None => format!("[{rows}, {row_elements}]"),
            Some((_, count)) => format!("[{count}, {rows}, {row_elements}]"),
        };
        Err(shape_error(name, info, expected))
    }

    /// Whether a stack shares the scales of one matrix; an error if the shape is neither that of
    /// one nor that of all.
    fn check_blocks(
        &self,
        name: &str,
        info: &TensorInfo,
        grid: [usize; 2],
    ) -> Result<bool, QuantError> {
        let squeeze = |sizes: &[usize]| -> Vec<usize> {
            sizes.iter().copied().filter(|&size| size != 1).collect()
        };
        let [rows, cols] = self.in_stored_order(grid);
        let got = squeeze(&info.shape);
        let own = got == squeeze(&[rows, cols]);
        let Some((_, count)) = self.stack else {
            return match own {
                true => Ok(false),
                false => Err(shape_error(name, info, format!("[{rows}, {cols}]"))),
            };
        };
        let all = [
            vec![count, rows, cols],
            vec![count.saturating_mul(rows), cols],
        ];
        match all.iter().any(|shape| got == squeeze(shape)) {
            true => Ok(false),
            // One scale for the whole tensor is one for each of its experts.
            false if own && rows == 1 && cols == 1 => Ok(true),
            false => Err(shape_error(
                name,
                info,
                format!("[{count}, {rows}, {cols}]"),
            )),
        }
    }

    /// Rows of blocks that the linear touches, the rows of the linear in one, and the distance of
    /// its blocks.
    fn row_blocks(
        &self,
        name: &str,
        block: usize,
    ) -> Result<(Range<usize>, usize, usize), QuantError> {
        let end = self.start[0] + (self.shape[0] - 1) * self.row_step + 1;
        let blocks = self.start[0] / block..end.div_ceil(block);
        if self.row_step == 1 || block == 1 {
            return Ok((blocks, block, self.row_step));
        }
        if block.is_multiple_of(self.row_step) {
            return Ok((blocks, block / self.row_step, 1));
        }
        Err(QuantError::Unsupported {
            what: format!("blocks of {block} interleaved rows in `{name}`"),
            supported: format!("blocks of a multiple of {} rows", self.row_step),
        })
    }
}

/// A part of one matrix of a stack, in whole elements.
struct Cut {
    stored_rows: usize,
    row_bytes: usize,
    /// Bytes of an element.
    bytes: usize,
    /// Along out and in.
    shape: [usize; 2],
    start: [usize; 2],
    row_step: usize,
    /// Which matrix of the stack.
    index: usize,
}

impl Cut {
    /// The byte range of the part and its strides along out and in.
    fn locate(&self, transposed: bool) -> (Range<usize>, [usize; 2]) {
        let [out, within] = match transposed {
            true => [self.bytes, self.row_bytes],
            false => [self.row_bytes, self.bytes],
        };
        let matrix = self.index * self.stored_rows * self.row_bytes;
        let first = matrix + self.start[0] * out + self.start[1] * within;
        let strides = [out * self.row_step, within];
        let last = first + (self.shape[0] - 1) * strides[0] + (self.shape[1] - 1) * strides[1];
        (first..last + self.bytes, strides)
    }
}

/// A linear stored as f32, f16 or bf16, whatever the format of its neighbours: what quantizers
/// leave alone.
///
/// # Errors
///
/// If its tensors are missing or have another type or shape.
pub fn load_float_linear(
    site: &LinearSite,
    tensors: &dyn TensorSource,
) -> Result<ExpertLinear, QuantError> {
    let name = site.tensor("weight");
    let info = site.info(tensors, &name)?;
    let format = match float_format(&name, &info)?.0 {
        ScaleFormat::F16 => CodeFormat::F16,
        ScaleFormat::BF16 => CodeFormat::BF16,
        _ => CodeFormat::F32,
    };
    site.linear(tensors, site.codes(tensors, &name, format, &[info.dtype])?)
}

/// Reads a whole tensor of floats.
///
/// # Errors
///
/// If it is missing, is not f32, f16 or bf16, or does not have `len` elements.
pub fn read_floats(
    tensors: &dyn TensorSource,
    name: &str,
    len: usize,
) -> Result<Vec<f32>, QuantError> {
    let info = tensors
        .info(name)
        .ok_or_else(|| QuantError::MissingTensor {
            tensor: name.to_owned(),
            needed: format!("{len} floats were to be read from it"),
        })?;
    let (format, bytes) = float_format(name, &info)?;
    if info.num_elements() != Some(len) {
        return Err(shape_error(name, &info, format!("{len} elements")));
    }
    let read = tensors.read(name, 0..len.saturating_mul(bytes))?;
    Ok(read
        .chunks(bytes)
        .filter_map(|value| format.decode(value))
        .collect())
}

fn float_format(name: &str, info: &TensorInfo) -> Result<(ScaleFormat, usize), QuantError> {
    let format = match info.dtype {
        TensorDtype::F32 => ScaleFormat::F32,
        TensorDtype::F16 => ScaleFormat::F16,
        TensorDtype::BF16 => ScaleFormat::BF16,
        _ => {
            let floats = [TensorDtype::F32, TensorDtype::F16, TensorDtype::BF16];
            check_dtype(name, info, &floats)?;
            ScaleFormat::F32
        }
    };
    Ok((format, format.bytes()))
}

fn check_dtype(name: &str, info: &TensorInfo, dtypes: &[TensorDtype]) -> Result<(), QuantError> {
    if dtypes.contains(&info.dtype) {
        return Ok(());
    }
    let expected: Vec<_> = dtypes.iter().map(ToString::to_string).collect();
    Err(QuantError::Dtype {
        tensor: name.to_owned(),
        got: info.dtype.to_string(),
        expected: expected.join(" or "),
    })
}

fn shape_error(name: &str, info: &TensorInfo, expected: impl Into<String>) -> QuantError {
    QuantError::Shape {
        tensor: name.to_owned(),
        got: info.shape.clone(),
        expected: expected.into(),
    }
}
