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
/// What Git LFS leaves in place of a file that was not fetched begins with.
const GIT_LFS_POINTER: &[u8] = b"version https://git-lfs.github.com/spec/";
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
    if file.starts_with(GIT_LFS_POINTER) {
        return Err(
            "it is a pointer of Git LFS; `git lfs pull` fetches the file itself".to_owned(),
        );
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(header: &str, data: &[u8]) -> Bytes {
        let length = (header.len() as u64).to_le_bytes();
        [&length[..], header.as_bytes(), data].concat().into()
    }

    fn error(header: &str, data: &[u8]) -> String {
        parse(&file(header, data)).unwrap_err()
    }

    /// Types that other readers refuse, or take for something else.
    #[test]
    fn every_type_of_quantized_checkpoints_is_read() {
        let header = r#"{"a":{"dtype":"F8_E4M3","shape":[2],"data_offsets":[0,2]},
            "b":{"dtype":"F8_E8M0","shape":[1],"data_offsets":[2,3]},
            "c":{"dtype":"F4","shape":[1,6],"data_offsets":[3,6]},
            "d":{"dtype":"BF16","shape":[],"data_offsets":[6,8]}}"#;
        let mut tensors = parse(&file(header, &[1, 2, 3, 4, 5, 6, 7, 8])).unwrap();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        let dtypes: Vec<_> = tensors.iter().map(|(_, t)| t.info.dtype).collect();
        let expected = [
            TensorDtype::F8E4M3,
            TensorDtype::F8E8M0,
            TensorDtype::F4,
            TensorDtype::BF16,
        ];
        assert_eq!(dtypes, expected);
        assert_eq!(&tensors[2].1.bytes[..], [4, 5, 6]);
    }

    #[test]
    fn headers_that_contradict_themselves_are_told() {
        let tensor = |dtype: &str, shape: &str, offsets: &str| {
            format!(r#"{{"a":{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}}}"#)
        };
        assert!(error("[]", &[]).contains("invalid type"));
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(error(&deep, &[]).contains("recursion limit"));
        assert!(error(&tensor("F9", "[1]", "[0,1]"), &[0]).contains("unknown variant `F9`"));
        assert!(error(&tensor("U8", "[2]", "[0,1]"), &[0]).contains("invalid shape"));
        assert!(error(&tensor("U8", "[1]", "[1,0]"), &[0]).contains("invalid offset"));
        assert!(error(&tensor("F4", "[1]", "[0,1]"), &[0]).contains("slice"));
        assert!(error(&tensor("U8", "[9]", "[0,9]"), &[0]).contains("the file is truncated"));
        let huge = "[18446744073709551615,2]";
        assert!(!error(&tensor("U8", huge, "[0,1]"), &[0]).is_empty());
        // Sizes that are right one by one, and whose sum is beyond 2^64.
        let part = u64::MAX / 8;
        let parts: Vec<String> = (0..9_u64)
            .map(|i| {
                let (start, end) = (part.saturating_mul(i), part.saturating_mul(i + 1));
                format!(r#""{i}":{{"dtype":"U8","shape":[{part}],"data_offsets":[{start},{end}]}}"#)
            })
            .collect();
        assert!(!error(&format!("{{{}}}", parts.join(",")), &[]).is_empty());
    }

    proptest! {
        /// Whatever the bytes are, the answer is tensors within the file, or an error.
        #[test]
        fn damaged_files_never_panic(
            at in 0_usize..200,
            bytes in prop::collection::vec(any::<u8>(), 0..8),
            cut in 0_usize..220,
        ) {
            let header = r#"{"__metadata__":{"format":"pt"},
                "a":{"dtype":"BF16","shape":[2,2],"data_offsets":[0,8]},
                "b":{"dtype":"U8","shape":[3],"data_offsets":[8,11]}}"#;
            let mut whole = file(header, &[0; 11]).to_vec();
            for (old, new) in whole.iter_mut().skip(at).zip(bytes) {
                *old = new;
            }
            whole.truncate(cut);
            if let Ok(tensors) = parse(&whole.into()) {
                for (_, tensor) in tensors {
                    prop_assert_eq!(tensor.info.num_bytes(), Some(tensor.bytes.len()));
                }
            }
        }
    }
}
