use super::LinearSite;
use super::tensors::{dtype_error, shape_error};
use crate::{
    CodeFormat, ExpertLinear, QuantError, ScaleFormat, TensorDtype, TensorInfo, TensorSource,
};

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
    let format = match expect_floats(&name, &info)? {
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
    let format = float_vector(tensors, name, len)?;
    let read = tensors.read(name, 0..len.saturating_mul(format.bytes()))?;
    Ok(decode(&read, format, 1))
}

/// Whether [`read_floats`] would find what it needs; nothing is read.
///
/// # Errors
///
/// Those of [`read_floats`].
pub fn check_floats(tensors: &dyn TensorSource, name: &str, len: usize) -> Result<(), QuantError> {
    float_vector(tensors, name, len).map(|_| ())
}

/// How to read a tensor, if it is one of `len` floats.
fn float_vector(
    tensors: &dyn TensorSource,
    name: &str,
    len: usize,
) -> Result<ScaleFormat, QuantError> {
    let info = tensors
        .info(name)
        .ok_or_else(|| QuantError::MissingTensor {
            tensor: name.to_owned(),
            needed: format!("{len} floats were to be read from it"),
        })?;
    let format = expect_floats(name, &info)?;
    match info.num_elements() == Some(len) {
        true => Ok(format),
        false => Err(shape_error(name, &info, format!("{len} elements"))),
    }
}

impl LinearSite {
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
        let format = expect_floats(name, &info)?;
        let index = match (info.num_elements(), self.stack) {
            (Some(1), _) => 0,
            (Some(n), Some((index, count))) if n == count => index,
            (_, None) => return Err(shape_error(name, &info, "[1]")),
            (_, Some((_, count))) => {
                return Err(shape_error(name, &info, format!("[1] or [{count}]")));
            }
        };
        let bytes = format.bytes();
        let read = tensors.read(name, index * bytes..(index + 1) * bytes)?;
        Ok(format.decode(&read))
    }

    /// A scale that belongs to the whole linear, see [`LinearSite::scalar`].
    ///
    /// # Errors
    ///
    /// If it is missing, has another type or shape, or is not a positive number.
    pub fn positive_scalar(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
    ) -> Result<f32, QuantError> {
        let scalar = self.scalar(tensors, name)?;
        let value = scalar.ok_or_else(|| self.missing(name))?;
        match value.is_finite() && value > 0.0 {
            true => Ok(value),
            false => Err(QuantError::Scale {
                name: name.to_owned(),
                at: Vec::new(),
                value,
                reason: "it must be positive and finite",
            }),
        }
    }

    /// The reciprocal of a scale that belongs to the whole linear, for formats that store what they
    /// divided by, see [`LinearSite::scalar`].
    ///
    /// # Errors
    ///
    /// As [`LinearSite::positive_scalar`], or if the reciprocal is too large for `f32`.
    pub fn positive_reciprocal(
        &self,
        tensors: &dyn TensorSource,
        name: &str,
    ) -> Result<f32, QuantError> {
        let value = self.positive_scalar(tensors, name)?;
        match value.recip() {
            reciprocal if reciprocal.is_finite() => Ok(reciprocal),
            _ => Err(QuantError::Scale {
                name: name.to_owned(),
                at: Vec::new(),
                value,
                reason: "its reciprocal must be finite",
            }),
        }
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
        let format = expect_floats(name, &info)?;
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
        let bytes = format.bytes();
        let read = tensors.read(name, first * bytes..(last + 1) * bytes)?;
        Ok(Some(decode(&read, format, self.row_step)))
    }
}

fn decode(bytes: &[u8], format: ScaleFormat, step: usize) -> Vec<f32> {
    let values = bytes.chunks_exact(format.bytes()).step_by(step);
    values.filter_map(|value| format.decode(value)).collect()
}

/// How to read a tensor of floats; `None` if it is not one.
pub(super) fn float_format(info: &TensorInfo) -> Option<ScaleFormat> {
    match info.dtype {
        TensorDtype::F32 => Some(ScaleFormat::F32),
        TensorDtype::F16 => Some(ScaleFormat::F16),
        TensorDtype::BF16 => Some(ScaleFormat::BF16),
        _ => None,
    }
}

fn expect_floats(name: &str, info: &TensorInfo) -> Result<ScaleFormat, QuantError> {
    let floats = [TensorDtype::F32, TensorDtype::F16, TensorDtype::BF16];
    float_format(info).ok_or_else(|| dtype_error(name, info, &floats))
}
