use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use moekit_quant::{MoeModelSpec, QuantError, TensorInfo, TensorSource, slice_tensor};
use serde::Deserialize;
use serde_json::Value;

use crate::json::{MAX_CONFIG_BYTES, MAX_INDEX_BYTES, read_json};
use crate::shard::{MappedTensor, open_shard};
use crate::{CheckpointError, ModelConfig, quant_config};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// A Hugging Face checkpoint directory: `config.json` and safetensors, single or sharded.
///
/// The files are mapped: opening reads the configuration and the headers, reading a tensor touches
/// its own pages only.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    config: Value,
    quantization: Option<Value>,
    tensors: BTreeMap<String, MappedTensor>,
}

impl Checkpoint {
    /// Opens a directory.
    ///
    /// # Errors
    ///
    /// If a file is missing, truncated or not what it should be; the message names it.
    pub fn open(dir: impl AsRef<Path>) -> Result<Self, CheckpointError> {
        let dir = dir.as_ref().to_owned();
        let config_path = dir.join("config.json");
        if !config_path.is_file() {
            return Err(CheckpointError::NotACheckpoint {
                dir,
                missing: "there is no config.json in it".to_owned(),
            });
        }
        let config: Value = read_json(&config_path, MAX_CONFIG_BYTES)?;
        let separate_path = dir.join("hf_quant_config.json");
        let separate = match separate_path.is_file() {
            true => Some(read_json(&separate_path, MAX_CONFIG_BYTES)?),
            false => None,
        };
        let quantization = quant_config::merge(&config, separate)?;
        let tensors = match dir.join(SINGLE).is_file() {
            true => open_shard(&dir.join(SINGLE))?.into_iter().collect(),
            false => open_sharded(&dir)?,
        };
        Ok(Self {
            dir,
            config,
            quantization,
            tensors,
        })
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// `config.json`.
    pub fn config(&self) -> &Value {
        &self.config
    }

    /// The quantization of the checkpoint, with `quant_method`, wherever the quantizer wrote it:
    /// `quantization_config` of `config.json` or of its text model, `hf_quant_config.json`. Hand it
    /// to [`backend_for`](moekit_quant::backend_for).
    pub fn quantization_config(&self) -> Option<&Value> {
        self.quantization.as_ref()
    }

    /// Names of the tensors in order.
    pub fn tensor_names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the model's family says of its MoE layers.
    ///
    /// # Errors
    ///
    /// If no family reads the model type, or the configuration lacks something.
    pub fn model(&self) -> Result<MoeModelSpec, CheckpointError> {
        ModelConfig::new(&self.config, self.tensor_names()).model()
    }
}

impl TensorSource for Checkpoint {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|tensor| tensor.info.clone())
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Bytes, QuantError> {
        let tensor = self
            .tensors
            .get(name)
            .ok_or_else(|| QuantError::MissingTensor {
                tensor: name.to_owned(),
                needed: format!("it was to be read from {}", self.dir.display()),
            })?;
        slice_tensor(name, &tensor.bytes, range)
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

fn open_sharded(dir: &Path) -> Result<BTreeMap<String, MappedTensor>, CheckpointError> {
    let path = dir.join(INDEX);
    if !path.is_file() {
        return Err(CheckpointError::NotACheckpoint {
            dir: dir.to_owned(),
            missing: format!("there is neither {SINGLE} nor {INDEX} in it"),
        });
    }
    let index: Index = read_json(&path, MAX_INDEX_BYTES)?;
    let error = |message: String| CheckpointError::Index {
        path: path.clone(),
        message,
    };
    let shards: BTreeSet<&String> = index.weight_map.values().collect();
    let mut by_shard = BTreeMap::new();
    for &shard in &shards {
        let file = dir.join(shard);
        // A shard is a file of this directory, whatever the index says.
        if Path::new(shard)
            .file_name()
            .is_none_or(|name| name != shard.as_str())
        {
            return Err(error(format!("shard `{shard}` is not the name of a file")));
        }
        if !file.is_file() {
            return Err(error(format!(
                "shard `{shard}` is missing from the directory"
            )));
        }
        let tensors: BTreeMap<_, _> = open_shard(&file)?.into_iter().collect();
        by_shard.insert(shard.clone(), tensors);
    }
    let mut tensors = BTreeMap::new();
    for (name, shard) in &index.weight_map {
        let tensor = by_shard
            .get_mut(shard)
            .and_then(|tensors| tensors.remove(name));
        let Some(tensor) = tensor else {
            return Err(error(format!("shard `{shard}` lacks tensor `{name}`")));
        };
        tensors.insert(name.clone(), tensor);
    }
    Ok(tensors)
}
