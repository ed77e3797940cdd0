use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::CheckpointError;

/// Largest `config.json` and `hf_quant_config.json`: those that name every quantized linear of a
/// large model stay below 10 MiB.
pub(crate) const MAX_CONFIG_BYTES: u64 = 32 << 20;
/// Largest index: 120 bytes for each of a million tensors.
pub(crate) const MAX_INDEX_BYTES: u64 = 128 << 20;

/// Reads a JSON file of at most `limit` bytes.
pub(crate) fn read_json<T: DeserializeOwned>(
    path: &Path,
    limit: u64,
) -> Result<T, CheckpointError> {
    let io = |source| CheckpointError::Io {
        path: path.to_owned(),
        source,
    };
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size > limit {
        return Err(CheckpointError::TooLarge {
            path: path.to_owned(),
            size,
            limit,
        });
    }
    let mut text = Vec::new();
    file.take(limit).read_to_end(&mut text).map_err(io)?;
    serde_json::from_slice(&text).map_err(|error| CheckpointError::Json {
        path: path.to_owned(),
        message: error.to_string(),
    })
}
