//! NumPy's array files.

use std::io::ErrorKind;
use std::path::Path;

use npyz::{DType, Deserialize, NpyFile, Order, TypeChar, WriterBuilder};
use py_literal::Value;

use super::LoadFile;
use super::array::{Array, checked_len, integers};
use crate::EvalError;

/// Longer than any header of an array of plain numbers; NumPy itself writes 118 bytes.
const MAX_HEADER: usize = 1024;

pub(super) fn read(path: &Path, bytes: &[u8]) -> Result<Array, EvalError> {
    let shape = checked_shape(path, bytes)?;
    let file = NpyFile::new(bytes).map_err(EvalError::io(path))?;
    let fortran = file.order() == Order::Fortran;
    let dtype = file.dtype();
    let values = match &dtype {
        DType::Plain(plain) => match (plain.type_char(), plain.size_field()) {
            (TypeChar::Float, 8) => numbers::<f64>(path, file, |v| v),
            (TypeChar::Float, 4) => numbers::<f32>(path, file, f64::from),
            (TypeChar::Float, 2) => numbers::<half::f16>(path, file, f64::from),
            (TypeChar::Int, 8) => numbers::<i64>(path, file, |v| v as f64),
            (TypeChar::Int, 4) => numbers::<i32>(path, file, f64::from),
            (TypeChar::Int, 2) => numbers::<i16>(path, file, f64::from),
            (TypeChar::Int, 1) => numbers::<i8>(path, file, f64::from),
            (TypeChar::Uint, 8) => numbers::<u64>(path, file, |v| v as f64),
            (TypeChar::Uint, 4) => numbers::<u32>(path, file, f64::from),
            (TypeChar::Uint, 2) => numbers::<u16>(path, file, f64::from),
            (TypeChar::Uint, 1) => numbers::<u8>(path, file, f64::from),
            _ => Err(wrong_dtype(path, &dtype)),
        },
        _ => Err(wrong_dtype(path, &dtype)),
    }?;
    let values = if fortran {
        from_fortran(&shape, &values)
    } else {
        values
    };
    Ok(Array { shape, values })
}

fn wrong_dtype(path: &Path, dtype: &DType) -> EvalError {
    let message = format!("dtype {}, expected integers or floats", dtype.descr());
    EvalError::content(path, message)
}

fn numbers<T: Deserialize>(
    path: &Path,
    file: NpyFile<&[u8]>,
    to_f64: impl Fn(T) -> f64,
) -> Result<Vec<f64>, EvalError> {
    let (shape, dtype) = (file.shape().to_vec(), file.dtype().descr());
    let values = file
        .data::<T>()
        .map_err(|error| EvalError::content(path, error))?;
    values
        .map(|value| value.map(&to_f64))
        .collect::<Result<_, _>>()
        .map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => EvalError::content(
                path,
                format!("the file ends before the last number of shape {shape:?}, dtype {dtype}"),
            ),
            _ => EvalError::io(path)(error),
        })
}

/// The shape, if the file is long enough for it. Asked before `npyz`, which multiplies the
/// extents as they come and allocates a header of the length that the file claims.
fn checked_shape(path: &Path, bytes: &[u8]) -> Result<Vec<usize>, EvalError> {
    let content = |message: &str| EvalError::content(path, message);
    let (start, length) = match bytes {
        [b'\x93', b'N', b'U', b'M', b'P', b'Y', 1, _, a, b, ..] => {
            (10, usize::from(u16::from_le_bytes([*a, *b])))
        }
        [
            b'\x93',
            b'N',
            b'U',
            b'M',
            b'P',
            b'Y',
            2 | 3,
            _,
            a,
            b,
            c,
            d,
            ..,
        ] => (12, u32::from_le_bytes([*a, *b, *c, *d]) as usize),
        _ => return Err(content("not a .npy file of version 1, 2 or 3")),
    };
    if length > MAX_HEADER {
        let message = format!("a header of {length} bytes, expected at most {MAX_HEADER}");
        return Err(content(&message));
    }
    let (header, data) = bytes
        .get(start..)
        .and_then(|rest| rest.split_at_checked(length))
        .ok_or_else(|| content("the file ends inside its header"))?;
    let header: Value = std::str::from_utf8(header)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .ok_or_else(|| content("the header is not a Python literal"))?;
    let shape =
        shape_in(&header).ok_or_else(|| content("the header has no `shape` of integers"))?;
    let claimed = checked_len(path, &shape)?;
    // The smallest number is one byte; the exact length follows from the dtype, later.
    if claimed > data.len() {
        let message = format!(
            "shape {shape:?} needs at least {claimed} bytes, the file has {} after its header",
            data.len()
        );
        return Err(content(&message));
    }
    Ok(shape)
}

fn shape_in(header: &Value) -> Option<Vec<usize>> {
    let is_shape = |key: &Value| key.as_string().is_some_and(|key| key == "shape");
    let (_, shape) = header.as_dict()?.iter().find(|(key, _)| is_shape(key))?;
    let extent = |value: &Value| usize::try_from(value.as_integer()?).ok();
    shape.as_tuple()?.iter().map(extent).collect()
}

/// Values whose first index runs fastest, in the order in which the last one does.
fn from_fortran(shape: &[usize], values: &[f64]) -> Vec<f64> {
    let mut strides = Vec::with_capacity(shape.len());
    let mut stride = 1;
    for extent in shape {
        strides.push(stride);
        stride *= extent;
    }
    let source = |mut index: usize| -> usize {
        let axes = shape.iter().zip(&strides).rev();
        axes.map(|(extent, stride)| {
            let along = index % extent;
            index /= extent;
            along * stride
        })
        .sum()
    };
    (0..values.len()).map(|i| values[source(i)]).collect()
}

pub(super) fn write(load: &LoadFile) -> Result<Vec<u8>, String> {
    match integers(load.values()) {
        Some(values) => bytes_of(&load.shape(), values.into_iter()),
        None => bytes_of(&load.shape(), load.values()),
    }
    .map_err(|error| error.to_string())
}

fn bytes_of<T: npyz::AutoSerialize>(
    shape: &[usize],
    values: impl Iterator<Item = T>,
) -> std::io::Result<Vec<u8>> {
    let shape: Vec<u64> = shape.iter().map(|&n| n as u64).collect();
    let mut bytes = Vec::new();
    let options = npyz::WriteOptions::new().default_dtype().shape(&shape);
    let mut writer = options.writer(&mut bytes).begin_nd()?;
    writer.extend(values)?;
    writer.finish()?;
    Ok(bytes)
}
