use std::fs::File;
use std::path::Path;

use bytes::Bytes;
use memmap2::Mmap;
use moekit_quant::{TensorDtype, TensorInfo};
use safetensors::Dtype;
use safetensors::tensor::Metadata;

use crate::CheckpointError;

/// Bytes of the header's length.
const LENGTH_BYTES: usize = 8;
/// Largest header, as the `safetensors` crate has it.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// A tensor of a mapped file: its bytes are paged in when they are read.
#[derive(Clone, Debug)]
pub(crate) struct MappedTensor {
    pub(crate) info: TensorInfo,
    pub(crate) bytes: Bytes,
}

/// Maps a safetensors file and returns its tensors by name.
///
/// Tensors of a type that the `safetensors` crate does not know make the header invalid.
pub(crate) fn open_shard(path: &Path) -> Result<Vec<(String, MappedTensor)>, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    if !file.metadata().map_err(io)?.is_file() {
        return Err(io(std::io::ErrorKind::InvalidInput.into()));
    }
    let error = |message: String| CheckpointError::Safetensors {
        path: path.to_owned(),
        message,
    };
    parse(&map(&file).map_err(io)?).map_err(error)
}

/// Maps a file into memory.
#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Bytes> {
    // SAFETY: the mapping is private and read-only. Another process that truncates or writes the
    // file while it is mapped breaks it; a checkpoint is read as a file that nobody writes, as every
    // reader of safetensors by memory map does.
    let mapped = unsafe { Mmap::map(file) }?;
    Ok(Bytes::from_owner(mapped))
}

/// The tensors of a safetensors file.
pub(crate) fn parse(file: &Bytes) -> Result<Vec<(String, MappedTensor)>, String> {
    let Some(length) = file.first_chunk::<LENGTH_BYTES>() else {
        return Err(format!(
            "it has {} bytes, fewer than the {LENGTH_BYTES} of the header's length",
            file.len()
        ));
    };
    let length = u64::from_le_bytes(*length);
    let rest = file.slice(LENGTH_BYTES..);
    if length > MAX_HEADER_BYTES || length > rest.len() as u64 {
        return Err(format!(
            "it claims a header of {length} bytes, but {} bytes follow (a header has at most \
             {MAX_HEADER_BYTES}); it may be truncated, or not be a safetensors file",
            rest.len()
        ));
    }
    let (header, data) = (rest.slice(..length as usize), rest.slice(length as usize..));
    let metadata: Metadata = serde_json::from_slice(&header).map_err(|error| error.to_string())?;
    let mut tensors = Vec::new();
    let mut end = 0;
    for (name, info) in metadata.tensors() {
        let (start, stop) = info.data_offsets;
        if start > stop || stop > data.len() {
            return Err(format!(
                "tensor `{name}` lies at bytes {start}..{stop}, but only {} bytes of data follow \
                 the header; the file is truncated",
                data.len()
            ));
        }
        end = end.max(stop);
        let info = TensorInfo {
            dtype: dtype(info.dtype)
                .ok_or_else(|| format!("tensor `{name}` has the unknown type {:?}", info.dtype))?,
            shape: info.shape.clone(),
        };
        let bytes = data.slice(start..stop);
        tensors.push((name, MappedTensor { info, bytes }));
    }
    if end != data.len() {
        return Err(format!(
            "its tensors end at byte {end} of the data, but {} bytes follow the header",
            data.len()
        ));
    }
    Ok(tensors)
}

fn dtype(dtype: Dtype) -> Option<TensorDtype> {
    Some(match dtype {
        Dtype::BOOL => TensorDtype::Bool,
        Dtype::F4 => TensorDtype::F4,
        Dtype::F6_E2M3 => TensorDtype::F6E2M3,
        Dtype::F6_E3M2 => TensorDtype::F6E3M2,
        Dtype::U8 => TensorDtype::U8,
        Dtype::I8 => TensorDtype::I8,
        Dtype::F8_E5M2 => TensorDtype::F8E5M2,
        Dtype::F8_E4M3 => TensorDtype::F8E4M3,
        Dtype::F8_E8M0 => TensorDtype::F8E8M0,
        Dtype::F8_E4M3FNUZ => TensorDtype::F8E4M3Fnuz,
        Dtype::F8_E5M2FNUZ => TensorDtype::F8E5M2Fnuz,
        Dtype::I16 => TensorDtype::I16,
        Dtype::U16 => TensorDtype::U16,
        Dtype::F16 => TensorDtype::F16,
        Dtype::BF16 => TensorDtype::BF16,
        Dtype::I32 => TensorDtype::I32,
        Dtype::U32 => TensorDtype::U32,
        Dtype::F32 => TensorDtype::F32,
        Dtype::C64 => TensorDtype::C64,
        Dtype::F64 => TensorDtype::F64,
        Dtype::I64 => TensorDtype::I64,
        Dtype::U64 => TensorDtype::U64,
        _ => return None,
    })
}
