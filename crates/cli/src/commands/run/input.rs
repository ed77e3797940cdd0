//! Tokens in, outputs out: safetensors files, or seeded random tokens.

use std::path::{Path, PathBuf};

use half::{bf16, f16};
use moekit::quant::MoeLayerSpec;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use safetensors::tensor::{TensorView, serialize};
use safetensors::{Dtype, SafeTensors};

use super::execute::LayerRun;
use super::{ActivationDtype, check_width};
use crate::error::{CliError, Result};
use crate::output::write_file;

/// Where the tokens come from.
pub(super) enum Inputs {
    Random {
        tokens: usize,
        seed: u64,
        dtype: ActivationDtype,
    },
    File {
        path: PathBuf,
        bytes: Vec<u8>,
        dtype: Option<ActivationDtype>,
    },
}

/// The tokens of one layer, `[num_tokens, hidden_size]`.
pub(super) enum Activations {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
}

impl Activations {
    fn from_f32(values: Vec<f32>, dtype: ActivationDtype) -> Self {
        match dtype {
            ActivationDtype::F32 => Self::F32(values),
            ActivationDtype::Bf16 => Self::Bf16(values.into_iter().map(bf16::from_f32).collect()),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::F32(values) => values.len(),
            Self::Bf16(values) => values.len(),
        }
    }
}

fn not_safetensors(path: &Path, error: &safetensors::SafeTensorError) -> CliError {
    CliError::file(path, format!("truncated, or no safetensors file: {error}"))
}

impl Inputs {
    pub(super) fn open(path: &Path, dtype: Option<ActivationDtype>) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| CliError::file(path, e))?;
        SafeTensors::deserialize(&bytes).map_err(|e| not_safetensors(path, &e))?;
        Ok(Self::File {
            path: path.to_owned(),
            bytes,
            dtype,
        })
    }

    /// The tokens of a layer.
    pub(super) fn layer(&self, spec: &MoeLayerSpec) -> Result<Activations> {
        match self {
            Self::Random {
                tokens,
                seed,
                dtype,
            } => {
                let count = tokens.checked_mul(spec.hidden_size).ok_or_else(|| {
                    CliError::usage(format!(
                        "{tokens} tokens of {} values are too many",
                        spec.hidden_size
                    ))
                })?;
                let mut rng = ChaCha8Rng::seed_from_u64(*seed);
                rng.set_stream(spec.layer as u64);
                let values = (0..count)
                    .map(|_| StandardNormal.sample(&mut rng))
                    .collect();
                Ok(Activations::from_f32(values, *dtype))
            }
            Self::File { path, bytes, dtype } => {
                let file =
                    SafeTensors::deserialize(bytes).map_err(|e| not_safetensors(path, &e))?;
                let name = format!("layers.{}.input", spec.layer);
                let tensor = file.tensor(&name).map_err(|e| CliError::file(path, e))?;
                check_width(spec, tensor.shape(), &name)?;
                let values = floats(&tensor).ok_or_else(|| {
                    let message = format!(
                        "tensor `{name}` is {:?}, expected F64, F32, F16 or BF16",
                        tensor.dtype()
                    );
                    CliError::file(path, message)
                })?;
                let own = match tensor.dtype() {
                    Dtype::BF16 => ActivationDtype::Bf16,
                    _ => ActivationDtype::F32,
                };
                Ok(Activations::from_f32(values, dtype.unwrap_or(own)))
            }
        }
    }
}

/// Values of any float type; safetensors are little-endian.
fn floats(tensor: &TensorView<'_>) -> Option<Vec<f32>> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::F64 => data
            .as_chunks()
            .0
            .iter()
            .map(|&b| f64::from_le_bytes(b) as f32)
            .collect(),
        Dtype::F32 => data
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        Dtype::F16 => data
            .as_chunks()
            .0
            .iter()
            .map(|&b| f16::from_le_bytes(b).to_f32())
            .collect(),
        Dtype::BF16 => data
            .as_chunks()
            .0
            .iter()
            .map(|&b| bf16::from_le_bytes(b).to_f32())
            .collect(),
        _ => return None,
    })
}

/// Writes `layers.N.output` f32, `layers.N.topk_ids` i64 and `layers.N.topk_weights` f32.
pub(super) fn write(path: &Path, runs: &[LayerRun]) -> Result<()> {
    let mut tensors = Vec::with_capacity(3 * runs.len());
    for run in runs {
        let f32s = |values: &[f32]| {
            values
                .iter()
                .flat_map(|v| v.to_le_bytes())
                .collect::<Vec<u8>>()
        };
        let ids: Vec<u8> = run.topk_ids.iter().flat_map(|v| v.to_le_bytes()).collect();
        let name = |what| format!("layers.{}.{what}", run.layer);
        tensors.extend([
            (
                name("output"),
                Dtype::F32,
                [run.tokens, run.hidden_size],
                f32s(&run.output),
            ),
            (name("topk_ids"), Dtype::I64, [run.tokens, run.top_k], ids),
            (
                name("topk_weights"),
                Dtype::F32,
                [run.tokens, run.top_k],
                f32s(&run.topk_weights),
            ),
        ]);
    }
    let views = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| {
            let view = TensorView::new(*dtype, shape.to_vec(), bytes);
            Ok((name, view.map_err(|e| CliError::file(path, e))?))
        })
        .collect::<Result<Vec<_>>>()?;
    let file = serialize(views, None).map_err(|e| CliError::file(path, e))?;
    write_file(path, &file)
}
