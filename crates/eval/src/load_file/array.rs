//! Numbers of any type in any number of dimensions, on their way to a load.

use std::path::Path;

use moekit_placement::{ExpertLoad, LoadTrace};

use super::LoadFile;
use crate::EvalError;

/// The most numbers that a file may claim to hold, 2 GiB of them: 10 000 steps of 61 layers of
/// 256 experts are 156 million.
pub(super) const MAX_VALUES: usize = 1 << 28;

/// The largest integer up to which a double holds every integer.
const MAX_EXACT: f64 = 9_007_199_254_740_992.0;

/// Row-major numbers and their shape.
#[derive(Debug)]
pub(super) struct Array {
    pub(super) shape: Vec<usize>,
    pub(super) values: Vec<f64>,
}

impl Array {
    pub(super) fn into_load(self, path: &Path) -> Result<LoadFile, EvalError> {
        if matches!(self.shape.len(), 2 | 3) && self.shape.contains(&0) {
            let message = format!(
                "shape {:?} holds no load: every extent is at least 1",
                self.shape
            );
            return Err(EvalError::content(path, message));
        }
        let load = |step, values| {
            let [.., layers, experts] = *self.shape.as_slice() else {
                return Err(dimensions(path, &self.shape));
            };
            ExpertLoad::new(layers, experts, values).map_err(|reason| EvalError::Load {
                path: path.to_owned(),
                step,
                reason: Box::new(reason),
            })
        };
        match *self.shape.as_slice() {
            [_, _] => load(None, self.values).map(LoadFile::Total),
            [_, layers, experts] => {
                let steps = self.values.chunks(layers * experts).enumerate();
                let steps = steps.map(|(s, values)| load(Some(s), values.to_vec()));
                let trace = LoadTrace::new(steps.collect::<Result<_, _>>()?);
                trace
                    .map(LoadFile::Trace)
                    .map_err(|reason| EvalError::Load {
                        path: path.to_owned(),
                        step: None,
                        reason: Box::new(reason),
                    })
            }
            _ => Err(dimensions(path, &self.shape)),
        }
    }
}

fn dimensions(path: &Path, shape: &[usize]) -> EvalError {
    let message = format!(
        "a load is [layers, experts] or [steps, layers, experts], got an array of shape {shape:?}"
    );
    EvalError::content(path, message)
}

/// The number of elements of a shape, before anything of that size is allocated.
pub(super) fn checked_len(path: &Path, shape: &[usize]) -> Result<usize, EvalError> {
    if !matches!(shape.len(), 2 | 3) {
        return Err(dimensions(path, shape));
    }
    shape
        .iter()
        .try_fold(1usize, |product, &n| product.checked_mul(n))
        .filter(|&n| n <= MAX_VALUES)
        .ok_or_else(|| {
            let message = format!("shape {shape:?} is more than {MAX_VALUES} numbers");
            EvalError::content(path, message)
        })
}

/// The values as integers, if each is one.
pub(super) fn integers(values: impl Iterator<Item = f64>) -> Option<Vec<i64>> {
    values
        .map(|v| (v.fract() == 0.0 && v.abs() <= MAX_EXACT).then_some(v as i64))
        .collect()
}

/// The number types that load files use.
#[derive(Clone, Copy, Debug)]
pub(super) enum Number {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
}

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Bytes {
    Little,
    Native,
}

/// Numbers from their bytes.
pub(super) fn decode(number: Number, order: Bytes, bytes: &[u8]) -> Vec<f64> {
    // `as`: the 64-bit integers have no lossless conversion, and need none.
    macro_rules! decode {
        ($type:ty, $size:literal) => {{
            let one = |&chunk: &[u8; $size]| match order {
                Bytes::Little => <$type>::from_le_bytes(chunk),
                Bytes::Native => <$type>::from_ne_bytes(chunk),
            };
            bytes.as_chunks().0.iter().map(one)
        }};
    }
    match number {
        Number::F64 => decode!(f64, 8).collect(),
        Number::F32 => decode!(f32, 4).map(f64::from).collect(),
        Number::F16 => decode!(half::f16, 2).map(f64::from).collect(),
        Number::BF16 => decode!(half::bf16, 2).map(f64::from).collect(),
        Number::I64 => decode!(i64, 8).map(|v| v as f64).collect(),
        Number::I32 => decode!(i32, 4).map(f64::from).collect(),
        Number::I16 => decode!(i16, 2).map(f64::from).collect(),
        Number::I8 => decode!(i8, 1).map(f64::from).collect(),
        Number::U64 => decode!(u64, 8).map(|v| v as f64).collect(),
        Number::U32 => decode!(u32, 4).map(f64::from).collect(),
        Number::U16 => decode!(u16, 2).map(f64::from).collect(),
        Number::U8 => decode!(u8, 1).map(f64::from).collect(),
    }
}
