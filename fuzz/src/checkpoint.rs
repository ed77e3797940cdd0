//! The files of a checkpoint directory.

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use moekit_checkpoint::Checkpoint;
use moekit_quant::{TensorSource, backend_for};
use serde_json::Value;
use tempfile::TempDir;

/// More bytes than that are not needed to say anything about a header.
const MAX_DATA: u64 = 1 << 16;

const ONE: &str = r#"{"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},
    "b":{"dtype":"BF16","shape":[1],"data_offsets":[2,4]}}"#;
const TWO: &str = r#"{"c":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;

thread_local! {
    /// One directory for all inputs of a thread.
    static DIR: RefCell<TempDir> = RefCell::new(tempfile::tempdir().expect("a directory"));
}

/// Opens a directory one of whose files is the input, by the first byte: the whole shard, the
/// header of a shard, the index, or `config.json` and, after a zero byte, `hf_quant_config.json`.
pub fn checkpoint(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else {
        return;
    };
    DIR.with_borrow(|dir| {
        let dir = dir.path();
        for entry in fs::read_dir(dir).expect("the directory exists") {
            fs::remove_file(entry.expect("an entry").path()).expect("it is a file");
        }
        write(dir, "config.json", b"{}");
        match kind % 4 {
            0 => write(dir, "model.safetensors", data),
            1 => write(dir, "model.safetensors", &with_header(data)),
            2 => {
                write(dir, "model.safetensors.index.json", data);
                write(dir, "one.safetensors", &with_header(ONE.as_bytes()));
                write(dir, "two.safetensors", &with_header(TWO.as_bytes()));
            }
            _ => {
                let mut files = data.splitn(2, |&byte| byte == 0);
                write(dir, "config.json", files.next().unwrap_or_default());
                if let Some(separate) = files.next() {
                    write(dir, "hf_quant_config.json", separate);
                }
                write(dir, "model.safetensors", &with_header(ONE.as_bytes()));
            }
        }
        if let Ok(checkpoint) = Checkpoint::open(dir) {
            read_all(&checkpoint);
        }
    });
}

fn read_all(checkpoint: &Checkpoint) {
    for name in checkpoint.tensor_names() {
        let info = checkpoint.info(name).expect("it has a name");
        let len = info.num_bytes().expect("its bytes are in the file");
        let bytes = checkpoint.read(name, 0..len).expect("they can be read");
        assert_eq!(bytes.len(), len);
        assert!(checkpoint.read(name, 0..len + 1).is_err());
        assert!(checkpoint.read(name, len + 1..len + 1).is_err());
    }
    // What they say of the model is the business of another target.
    let _ = checkpoint.model();
    let _ = backend_for(checkpoint.quantization_config());
}

/// A file with that header and as many bytes of data as it says.
fn with_header(header: &[u8]) -> Vec<u8> {
    let ends = |tensors: &Value| -> Option<u64> {
        let ends = tensors.as_object()?.values();
        ends.filter_map(|t| t.get("data_offsets")?.get(1)?.as_u64())
            .max()
    };
    let json = serde_json::from_slice(header).ok();
    let len = json.as_ref().and_then(ends).unwrap_or(0).min(MAX_DATA);
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.resize(file.len() + len as usize, 7);
    file
}

fn write(dir: &Path, name: &str, bytes: &[u8]) {
    fs::write(dir.join(name), bytes).expect("the directory can be written");
}
