//! A checkpoint that becomes what its reader asks for.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;

use arbitrary::{Result, Unstructured};
use bytes::Bytes;
use moekit_quant::{QuantError, TensorDtype, TensorInfo, TensorSource, slice_tensor};

use crate::pick::pick;

/// Bytes after which the values of a tensor repeat themselves.
const PERIOD: usize = 512;
/// No tensor of a target is larger.
const MAX_BYTES: usize = 1 << 20;

/// The types that checkpoints have.
pub(crate) const DTYPES: &[TensorDtype] = &[
    TensorDtype::F32,
    TensorDtype::BF16,
    TensorDtype::F16,
    TensorDtype::F8E4M3,
    TensorDtype::U8,
    TensorDtype::I8,
    TensorDtype::I32,
    TensorDtype::F8E8M0,
    TensorDtype::I64,
    TensorDtype::F4,
    TensorDtype::F6E2M3,
    TensorDtype::F8E5M2,
];

/// Something that is wrong with a tensor.
#[derive(Clone, Debug)]
pub(crate) enum Damage {
    /// It is not there.
    Missing,
    /// It has another type.
    Dtype(TensorDtype),
    /// It has another size along an axis.
    Size(usize, usize),
    /// It has fewer bytes than its shape says.
    Bytes(usize),
    /// A byte of it is another.
    Byte(usize, u8),
}

impl Damage {
    pub(crate) fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        Ok(match u.int_in_range(0..=4)? {
            0 => Self::Missing,
            1 => Self::Dtype(pick(u, DTYPES)?),
            2 => {
                let huge = usize::MAX / 3;
                let size = pick(u, &[0, 1, 2, 3, 16, 32, 1 << 31, huge, usize::MAX])?;
                Self::Size(u.int_in_range(0..=4)?, size)
            }
            3 => Self::Bytes(u.arbitrary::<u16>()?.into()),
            _ => Self::Byte(u.arbitrary::<u16>()?.into(), u.arbitrary()?),
        })
    }
}

/// Tensors in memory that follow the errors of whoever reads them: what is missing is made, what
/// has another type or shape than expected gets that one. So the source knows nothing of formats,
/// and every message must name what would be right.
#[derive(Debug)]
pub(crate) struct ObedientSource {
    tensors: Mutex<BTreeMap<String, (TensorInfo, Bytes)>>,
    /// Which of several expected types and shapes is taken.
    choice: usize,
    first_dtype: TensorDtype,
    /// Where values come from.
    noise: Vec<u8>,
    /// Whether all values are such as a trained model may have.
    plausible: bool,
}

impl ObedientSource {
    pub(crate) fn arbitrary(u: &mut Unstructured<'_>) -> Result<Self> {
        let mut noise = u.arbitrary::<[u8; 13]>()?.to_vec();
        noise.push(1);
        Ok(Self {
            tensors: Mutex::default(),
            choice: u.int_in_range(0..=3)?,
            first_dtype: pick(u, DTYPES)?,
            noise,
            plausible: u.ratio(7, 8)?,
        })
    }

    /// Adds a tensor that nobody has asked for.
    pub(crate) fn add(&self, name: &str, dtype: TensorDtype, shape: &[usize]) {
        self.put(name, dtype, shape.to_vec());
    }

    /// Names in order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.tensors
            .lock()
            .expect("no panic")
            .keys()
            .cloned()
            .collect()
    }

    /// Does as an error says; `false` if that is not possible.
    pub(crate) fn obey(&self, error: &QuantError) -> bool {
        match error {
            QuantError::MissingTensor { tensor, .. } => {
                self.put(tensor, self.first_dtype, vec![1]);
                true
            }
            QuantError::Dtype {
                tensor, expected, ..
            } => {
                let dtypes: Vec<_> = DTYPES
                    .iter()
                    .filter(|dtype| expected.split(" or ").any(|e| e == dtype.to_string()))
                    .collect();
                assert!(!dtypes.is_empty(), "which type is `{expected}`?");
                let shape = self.info(tensor).map_or(vec![1], |info| info.shape);
                self.put(tensor, *dtypes[self.choice % dtypes.len()], shape);
                true
            }
            QuantError::Shape {
                tensor, expected, ..
            } => {
                let shapes = shapes(expected);
                assert!(!shapes.is_empty(), "which shape is `{expected}`?");
                let dtype = match expected.contains("of i64") {
                    true => TensorDtype::I64,
                    false => self
                        .info(tensor)
                        .map_or(self.first_dtype, |info| info.dtype),
                };
                self.put(tensor, dtype, shapes[self.choice % shapes.len()].clone());
                true
            }
            QuantError::Value {
                tensor, expected, ..
            } => {
                let values = shapes(expected).swap_remove(0);
                let bytes: Bytes = values
                    .iter()
                    .flat_map(|&v| (v as i64).to_le_bytes())
                    .collect();
                let info = self.info(tensor).expect("it has values");
                let mut tensors = self.tensors.lock().expect("no panic");
                tensors.insert(tensor.clone(), (info, bytes));
                true
            }
            _ => false,
        }
    }

    /// Damages the tensor of an index.
    pub(crate) fn damage(&self, index: usize, damage: &Damage) {
        let names = self.names();
        let Some(name) = names.get(index % names.len().max(1)) else {
            return;
        };
        let info = self.info(name).expect("it was there");
        match damage {
            Damage::Missing => {
                self.tensors.lock().expect("no panic").remove(name);
            }
            Damage::Dtype(dtype) => self.put(name, *dtype, info.shape),
            Damage::Size(axis, size) => {
                let mut shape = info.shape;
                match shape.get_mut(*axis) {
                    Some(old) => *old = *size,
                    None => shape.push(*size),
                }
                self.put(name, info.dtype, shape);
            }
            Damage::Bytes(len) => self.change_bytes(name, |bytes| bytes.truncate(*len)),
            Damage::Byte(at, value) => self.change_bytes(name, |bytes| {
                let len = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte = *value;
                }
            }),
        }
    }

    fn change_bytes(&self, name: &str, change: impl Fn(&mut Vec<u8>)) {
        let mut tensors = self.tensors.lock().expect("no panic");
        if let Some((_, bytes)) = tensors.get_mut(name) {
            let mut changed = bytes.to_vec();
            change(&mut changed);
            *bytes = changed.into();
        }
    }

    fn put(&self, name: &str, dtype: TensorDtype, shape: Vec<usize>) {
        let info = TensorInfo { dtype, shape };
        let len = info.num_bytes().unwrap_or(usize::MAX).min(MAX_BYTES);
        // Neighbouring tensors differ.
        let start = name.bytes().map(usize::from).sum::<usize>();
        let noise = self.noise.iter().cycle().skip(start % self.noise.len());
        let values = noise
            .enumerate()
            .map(|(i, byte)| byte.wrapping_add((i / 7) as u8));
        let values = values.take(PERIOD);
        let pattern: Vec<u8> = match self.plausible {
            true => plausible(dtype, name.contains("scale"), values),
            false => values.collect(),
        };
        let mut bytes = pattern.repeat(len.div_ceil(PERIOD));
        bytes.truncate(len);
        let mut tensors = self.tensors.lock().expect("no panic");
        tensors.insert(name.to_owned(), (info, bytes.into()));
    }
}

impl TensorSource for ObedientSource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        let tensors = self.tensors.lock().expect("no panic");
        tensors.get(name).map(|(info, _)| info.clone())
    }

    fn read(&self, name: &str, range: Range<usize>) -> std::result::Result<Bytes, QuantError> {
        let tensors = self.tensors.lock().expect("no panic");
        let (_, bytes) = tensors.get(name).expect("only what has an info is read");
        slice_tensor(name, bytes, range)
    }
}

/// Positive, finite numbers of middling size.
fn plausible(dtype: TensorDtype, is_scale: bool, values: impl Iterator<Item = u8>) -> Vec<u8> {
    match dtype {
        // The exponent of 0.5 to 2, whatever the mantissa.
        TensorDtype::F32 => last(values, 4, 0x3f),
        TensorDtype::BF16 => last(values, 2, 0x3f),
        TensorDtype::F16 => last(values, 2, 0x3a),
        TensorDtype::F8E4M3 if is_scale => values.map(|v| 0x30 | v & 15).collect(),
        TensorDtype::F8E4M3 => values.map(|v| v & 0xfe).collect(),
        TensorDtype::U8 | TensorDtype::F8E8M0 if is_scale => values.map(|v| 120 + v % 16).collect(),
        _ => values.collect(),
    }
}

fn last(values: impl Iterator<Item = u8>, size: usize, last: u8) -> Vec<u8> {
    let byte = |(i, v)| if i % size == size - 1 { last } else { v };
    values.enumerate().map(byte).collect()
}

/// The lists of numbers in a message: `[4, 96] or [4]`, `12 elements`.
fn shapes(expected: &str) -> Vec<Vec<usize>> {
    if let Some(count) = expected.strip_suffix(" elements") {
        return vec![vec![count.parse().expect("a number")]];
    }
    let lists = expected.split('[').skip(1);
    lists
        .filter_map(|list| {
            let numbers = list.split(']').next()?.split(", ");
            numbers.map(|n| n.parse().ok()).collect()
        })
        .collect()
}
