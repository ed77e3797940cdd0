//! One tensor of a `torch.save` file, read without running anything in it.

use std::path::Path;

use pytorch_reader::{DType, PytorchReader};

use super::array::{Array, Bytes, Number, checked_len, decode};
use super::choose;
use crate::EvalError;

pub(super) fn read(path: &Path, wanted: Option<&str>) -> Result<Array, EvalError> {
    let file = PytorchReader::new(path).map_err(|error| EvalError::content(path, error))?;
    let names = || file.tensors().keys().map(String::as_str);
    if wanted.is_none() && names().any(|n| n.starts_with("records.")) {
        return Err(EvalError::content(
            path,
            "the records of one rank, of SGLang's recorder in mode per_pass or per_token; \
             record with --expert-distribution-recorder-mode stat, which counts over all ranks",
        ));
    }
    let name = choose(path, names(), wanted)?;
    let Some(tensor) = file.get(name) else {
        return Err(EvalError::content(
            path,
            format!("there is no tensor `{name}`"),
        ));
    };
    let number = number(tensor.dtype()).ok_or_else(|| {
        let message = format!("tensor `{name}` is boolean, expected integers or floats");
        EvalError::content(path, message)
    })?;
    // Before `read`: a view that repeats its storage may claim any size.
    checked_len(path, tensor.shape())?;
    let bytes = tensor.read().map_err(EvalError::io(path))?;
    Ok(Array {
        shape: tensor.shape().to_vec(),
        values: decode(number, Bytes::Native, &bytes),
    })
}

fn number(dtype: DType) -> Option<Number> {
    Some(match dtype {
        DType::F64 => Number::F64,
        DType::F32 => Number::F32,
        DType::F16 => Number::F16,
        DType::BF16 => Number::BF16,
        DType::I64 => Number::I64,
        DType::I32 => Number::I32,
        DType::I16 => Number::I16,
        DType::I8 => Number::I8,
        DType::U64 => Number::U64,
        DType::U32 => Number::U32,
        DType::U16 => Number::U16,
        DType::U8 => Number::U8,
        DType::Bool => return None,
    })
}
