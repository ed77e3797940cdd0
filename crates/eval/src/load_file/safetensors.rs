//! One tensor of a safetensors file.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};

use super::array::{Array, Bytes, Number, checked_len, decode, integers};
use super::{LoadFile, choose};
use crate::EvalError;

pub(super) fn read(path: &Path, bytes: &[u8], wanted: Option<&str>) -> Result<Array, EvalError> {
    let file = SafeTensors::deserialize(bytes).map_err(|error| {
        EvalError::content(path, format!("truncated, or no safetensors file: {error}"))
    })?;
    let name = choose(path, file.iter().map(|(name, _)| name), wanted)?;
    let tensor = file
        .tensor(name)
        .map_err(|error| EvalError::content(path, error))?;
    let number = number(tensor.dtype()).ok_or_else(|| {
        let message = format!(
            "tensor `{name}` has dtype {:?}, expected integers or floats",
            tensor.dtype()
        );
        EvalError::content(path, message)
    })?;
    checked_len(path, tensor.shape())?;
    Ok(Array {
        shape: tensor.shape().to_vec(),
        values: decode(number, Bytes::Little, tensor.data()),
    })
}

fn number(dtype: Dtype) -> Option<Number> {
    Some(match dtype {
        Dtype::F64 => Number::F64,
        Dtype::F32 => Number::F32,
        Dtype::F16 => Number::F16,
        Dtype::BF16 => Number::BF16,
        Dtype::I64 => Number::I64,
        Dtype::I32 => Number::I32,
        Dtype::I16 => Number::I16,
        Dtype::I8 => Number::I8,
        Dtype::U64 => Number::U64,
        Dtype::U32 => Number::U32,
        Dtype::U16 => Number::U16,
        Dtype::U8 => Number::U8,
        _ => return None,
    })
}

pub(super) fn write(load: &LoadFile) -> Result<Vec<u8>, String> {
    let (dtype, bytes): (_, Vec<u8>) = match integers(load.values()) {
        Some(values) => (
            Dtype::I64,
            values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ),
        None => (
            Dtype::F64,
            load.values().flat_map(f64::to_le_bytes).collect(),
        ),
    };
    let tensor = TensorView::new(dtype, load.shape(), &bytes).map_err(|error| error.to_string())?;
    // The version that vLLM's files of recorded load carry.
    let metadata = HashMap::from([("version".to_owned(), "1".to_owned())]);
    safetensors::serialize([("logical_count", tensor)], Some(metadata))
        .map_err(|error| error.to_string())
}
