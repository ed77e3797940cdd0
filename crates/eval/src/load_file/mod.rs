//! Expert load as files: what serving engines record, what planners read.
//!
//! | extension | content |
//! |---|---|
//! | `.json` | `[L][E]`, `[S][L][E]`, `{"logical_count": ..}` of either shape, `{"load_history": [{"logical_expert_load": [L][E]}, ..]}` |
//! | `.csv` | one row of `E` numbers per layer; or, under a header, columns `layer` or `step, layer` before the `E` numbers, rows in order; lines that start with `#` are comments |
//! | `.npy` | `[L, E]` or `[S, L, E]`, any integer or float dtype, C or Fortran order |
//! | `.safetensors` | one such tensor, as vLLM saves its load; of several, the one named `logical_count`, or any as `file.safetensors#name` |
//! | `.pt`, `.pth` | SGLang's expert distribution recorder, mode `stat`: `logical_count` `[S, L, E]`; or another tensor as `file.pt#name`. Nothing in the file is run |
//!
//! `S` steps, `L` layers, `E` logical experts. Counts beyond 2^53 are rounded.

mod array;
mod csv;
mod json;
mod npy;
mod safetensors;
mod torch;

use std::path::{Path, PathBuf};

use moekit_placement::{ExpertLoad, LoadTrace};

use crate::{EvalError, file};

/// What a load file holds.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum LoadFile {
    /// One load, `[L, E]`.
    Total(ExpertLoad),
    /// A load for each step, `[S, L, E]`.
    Trace(LoadTrace),
}

impl LoadFile {
    /// The load of all steps together, `[L, E]`.
    pub fn total(&self) -> ExpertLoad {
        match self {
            Self::Total(load) => load.clone(),
            Self::Trace(trace) => trace.total(),
        }
    }

    /// The steps, if the file has them.
    pub fn trace(&self) -> Option<&LoadTrace> {
        match self {
            Self::Total(_) => None,
            Self::Trace(trace) => Some(trace),
        }
    }

    /// The steps: a single load is a trace of one step.
    pub fn steps(&self) -> &[ExpertLoad] {
        match self {
            Self::Total(load) => std::slice::from_ref(load),
            Self::Trace(trace) => trace.steps(),
        }
    }

    /// `[L, E]` or `[S, L, E]`.
    pub fn shape(&self) -> Vec<usize> {
        let (first, steps) = match self {
            Self::Total(load) => (load, None),
            Self::Trace(trace) => (&trace.steps()[0], Some(trace.steps().len())),
        };
        steps
            .into_iter()
            .chain([first.num_layers(), first.num_experts()])
            .collect()
    }

    fn values(&self) -> impl Iterator<Item = f64> {
        let layers = self.steps().iter().flat_map(ExpertLoad::layers);
        layers.flat_map(|layer| layer.iter().copied())
    }
}

impl From<ExpertLoad> for LoadFile {
    fn from(load: ExpertLoad) -> Self {
        Self::Total(load)
    }
}

impl From<LoadTrace> for LoadFile {
    fn from(trace: LoadTrace) -> Self {
        Self::Trace(trace)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Json,
    Csv,
    Npy,
    Safetensors,
    Torch,
}

impl Format {
    const EXTENSIONS: [(&str, Self); 6] = [
        ("json", Self::Json),
        ("csv", Self::Csv),
        ("npy", Self::Npy),
        ("safetensors", Self::Safetensors),
        ("pt", Self::Torch),
        ("pth", Self::Torch),
    ];

    /// # Arguments
    ///
    /// - `usable` - what an error lists.
    fn of(path: &Path, usable: fn(Self) -> bool) -> Result<Self, EvalError> {
        let extension = path.extension().map(|e| e.to_string_lossy().to_lowercase());
        Self::EXTENSIONS
            .into_iter()
            .find(|(known, _)| extension.as_deref() == Some(known))
            .map(|(_, format)| format)
            .ok_or_else(|| EvalError::Extension {
                path: path.to_owned(),
                extension: extension.map_or("(none)".to_owned(), |e| format!("`.{e}`")),
                known: Self::EXTENSIONS
                    .iter()
                    .filter(|(_, format)| usable(*format))
                    .map(|(extension, _)| format!(".{extension}"))
                    .collect::<Vec<_>>()
                    .join(", "),
            })
    }

    /// The format that the first bytes of a file give away.
    fn sniff(bytes: &[u8]) -> Option<Self> {
        let text = bytes.trim_ascii_start().first();
        if bytes.starts_with(b"\x93NUMPY") {
            Some(Self::Npy)
        } else if bytes.starts_with(b"PK\x03\x04") {
            Some(Self::Torch)
        } else if bytes.get(8) == Some(&b'{') && bytes.get(4..8) == Some(&[0; 4]) {
            Some(Self::Safetensors)
        } else if matches!(text, Some(b'{' | b'[')) {
            Some(Self::Json)
        } else {
            None
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Json => "JSON",
            Self::Csv => "CSV",
            Self::Npy => "npy",
            Self::Safetensors => "safetensors",
            Self::Torch => "torch",
        }
    }
}

/// Reads a load file of any format of the [table](self).
///
/// # Errors
///
/// If the file cannot be read, its extension is unknown, its content is not what the extension
/// says, or its numbers are no load: ragged, empty, negative, infinite or NaN.
pub fn read(path: impl AsRef<Path>) -> Result<LoadFile, EvalError> {
    let (path, tensor) = split_name(path.as_ref());
    let format = Format::of(&path, |_| true)?;
    if let (Some(name), Format::Json | Format::Csv | Format::Npy) = (&tensor, format) {
        let message = format!(
            "`#{name}` names a tensor, and {} has no names",
            format.name()
        );
        return Err(EvalError::content(&path, message));
    }
    let bytes = file::read(&path)?;
    if let Some(content) = Format::sniff(&bytes).filter(|content| *content != format) {
        let message = format!(
            "the name says {}, the content is {}",
            format.name(),
            content.name()
        );
        return Err(EvalError::content(&path, message));
    }
    let array = match format {
        Format::Json => json::read(&path, &bytes),
        Format::Csv => csv::read(&path, &bytes),
        Format::Npy => npy::read(&path, &bytes),
        Format::Safetensors => safetensors::read(&path, &bytes, tensor.as_deref()),
        Format::Torch => torch::read(&path, tensor.as_deref()),
    };
    array?.into_load(&path)
}

/// Writes a load in the format that the extension names (`.json`, `.csv`, `.npy` or
/// `.safetensors`), whole or not at all. Whole numbers are written as integers.
///
/// # Errors
///
/// If the extension is unknown or the file cannot be written.
pub fn write(path: impl AsRef<Path>, load: &LoadFile) -> Result<(), EvalError> {
    let path = path.as_ref();
    let bytes = match Format::of(path, |format| format != Format::Torch)? {
        Format::Json => json::write(load),
        Format::Csv => csv::write(load),
        Format::Npy => npy::write(load),
        Format::Safetensors => safetensors::write(load),
        Format::Torch => Err("a load can be read from a torch file, not written to one; \
                              write .safetensors, .npy, .json or .csv"
            .to_owned()),
    };
    let bytes = bytes.map_err(|message| EvalError::content(path, message))?;
    file::write_whole(path, &bytes)
}

/// `file#tensor` in its parts, unless there is a file of the whole name.
fn split_name(path: &Path) -> (PathBuf, Option<String>) {
    let whole = || (path.to_owned(), None);
    match path.to_str().and_then(|text| text.rsplit_once('#')) {
        Some((file, tensor)) if !path.exists() && !file.is_empty() && !tensor.is_empty() => {
            (PathBuf::from(file), Some(tensor.to_owned()))
        }
        _ => whole(),
    }
}

/// The tensor to take: the one asked for, else the only one, else `logical_count`.
fn choose<'a>(
    path: &Path,
    names: impl Iterator<Item = &'a str>,
    wanted: Option<&str>,
) -> Result<&'a str, EvalError> {
    let mut names: Vec<&str> = names.collect();
    names.sort_unstable();
    let wanted_or_default = wanted.unwrap_or("logical_count");
    if let Some(&name) = names.iter().find(|name| **name == wanted_or_default) {
        return Ok(name);
    }
    match (wanted, names.as_slice()) {
        (None, [only]) => return Ok(only),
        (_, []) => return Err(EvalError::content(path, "the file holds no tensor")),
        _ => {}
    }
    let shown = names.iter().take(20).map(|n| format!("`{n}`"));
    let mut list = shown.collect::<Vec<_>>().join(", ");
    if names.len() > 20 {
        list += &format!(" and {} more", names.len() - 20);
    }
    let message = match wanted {
        Some(name) => format!("there is no tensor `{name}`; there are {list}"),
        None => format!(
            "the file holds {} tensors, and none is named `logical_count`; \
             choose one with `{}#NAME` from {list}",
            names.len(),
            path.display()
        ),
    };
    Err(EvalError::content(path, message))
}
