use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::QuantError;

/// The type of a tensor's elements, as safetensors names them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[non_exhaustive]
pub enum TensorDtype {
    /// Boolean, one byte.
    Bool,
    /// 4-bit float (E2M1), two per byte; shapes count the floats.
    F4,
    /// 6-bit float with 2 exponent bits.
    F6E2M3,
    /// 6-bit float with 3 exponent bits.
    F6E3M2,
    /// Unsigned byte.
    U8,
    /// Signed byte.
    I8,
    /// 8-bit float with 5 exponent bits.
    F8E5M2,
    /// 8-bit float with 4 exponent bits, without infinities.
    F8E4M3,
    /// 8-bit power of two.
    F8E8M0,
    /// 8-bit float with 4 exponent bits, other bias, one zero.
    F8E4M3Fnuz,
    /// 8-bit float with 5 exponent bits, other bias, one zero.
    F8E5M2Fnuz,
    /// Signed 16-bit integer.
    I16,
    /// Unsigned 16-bit integer.
    U16,
    /// IEEE half.
    F16,
    /// bfloat16.
    BF16,
    /// Signed 32-bit integer.
    I32,
    /// Unsigned 32-bit integer.
    U32,
    /// IEEE single.
    F32,
    /// IEEE double.
    F64,
    /// Signed 64-bit integer.
    I64,
    /// Unsigned 64-bit integer.
    U64,
    /// Two IEEE singles.
    C64,
}

impl TensorDtype {
    /// Bits of one element.
    pub const fn bits(self) -> usize {
        match self {
            Self::F4 => 4,
            Self::F6E2M3 | Self::F6E3M2 => 6,
            Self::Bool | Self::U8 | Self::I8 => 8,
            Self::F8E5M2 | Self::F8E4M3 | Self::F8E8M0 => 8,
            Self::F8E4M3Fnuz | Self::F8E5M2Fnuz => 8,
            Self::I16 | Self::U16 | Self::F16 | Self::BF16 => 16,
            Self::I32 | Self::U32 | Self::F32 => 32,
            Self::F64 | Self::I64 | Self::U64 | Self::C64 => 64,
        }
    }
}

impl fmt::Display for TensorDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Bool => "bool",
            Self::F4 => "f4",
            Self::F6E2M3 => "f6_e2m3",
            Self::F6E3M2 => "f6_e3m2",
            Self::U8 => "u8",
            Self::I8 => "i8",
            Self::F8E5M2 => "f8_e5m2",
            Self::F8E4M3 => "f8_e4m3",
            Self::F8E8M0 => "f8_e8m0",
            Self::F8E4M3Fnuz => "f8_e4m3fnuz",
            Self::F8E5M2Fnuz => "f8_e5m2fnuz",
            Self::I16 => "i16",
            Self::U16 => "u16",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I32 => "i32",
            Self::U32 => "u32",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I64 => "i64",
            Self::U64 => "u64",
            Self::C64 => "c64",
        };
        f.write_str(name)
    }
}

/// Type and shape of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TensorInfo {
    /// Type of an element.
    pub dtype: TensorDtype,
    /// Sizes, the last one varies fastest.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// Elements; `None` if the sizes overflow.
    pub fn num_elements(&self) -> Option<usize> {
        self.shape
            .iter()
            .try_fold(1_usize, |n, &size| n.checked_mul(size))
    }

    /// Bytes; `None` if the sizes overflow.
    pub fn num_bytes(&self) -> Option<usize> {
        self.num_elements()?
            .checked_mul(self.dtype.bits())
            .map(|bits| bits.div_ceil(8))
    }
}

/// Named tensors in row-major, little-endian bytes: a checkpoint.
pub trait TensorSource: Debug + Send + Sync {
    /// Type and shape of a tensor, `None` if there is no such tensor.
    fn info(&self, name: &str) -> Option<TensorInfo>;

    /// Some bytes of a tensor, without a copy where the source is mapped memory.
    ///
    /// # Errors
    ///
    /// If there is no such tensor, the range lies outside of it, or it cannot be read.
    fn read(&self, name: &str, range: Range<usize>) -> Result<Bytes, QuantError>;

    /// Whether there is such a tensor.
    fn contains(&self, name: &str) -> bool {
        self.info(name).is_some()
    }
}

/// Cuts a range out of a tensor's bytes: what most sources end with.
///
/// # Errors
///
/// If the range lies outside.
pub fn slice_tensor(name: &str, bytes: &Bytes, range: Range<usize>) -> Result<Bytes, QuantError> {
    if range.start > range.end || range.end > bytes.len() {
        return Err(QuantError::Range {
            tensor: name.to_owned(),
            start: range.start,
            end: range.end,
            len: bytes.len(),
        });
    }
    Ok(bytes.slice(range))
}

/// Tensors in memory.
///
/// ```
/// use moekit_quant::{MemorySource, TensorDtype, TensorSource};
///
/// let mut tensors = MemorySource::default();
/// tensors.insert("w", TensorDtype::F32, [1], 1.5_f32.to_le_bytes().to_vec());
/// assert_eq!(tensors.read("w", 0..4)?.len(), 4);
/// assert!(tensors.read("w", 0..5).is_err());
/// # Ok::<(), moekit_quant::QuantError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct MemorySource {
    tensors: BTreeMap<String, (TensorInfo, Bytes)>,
}

impl MemorySource {
    /// Adds a tensor or replaces it. The bytes are taken as they are; whether they fit the shape is
    /// for whoever reads to find out.
    pub fn insert(
        &mut self,
        name: impl Into<String>,
        dtype: TensorDtype,
        shape: impl Into<Vec<usize>>,
        bytes: impl Into<Bytes>,
    ) {
        let shape = shape.into();
        self.tensors
            .insert(name.into(), (TensorInfo { dtype, shape }, bytes.into()));
    }

    /// Takes a tensor away.
    pub fn remove(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }
}

impl TensorSource for MemorySource {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.tensors.get(name).map(|(info, _)| info.clone())
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Bytes, QuantError> {
        let (_, bytes) = self.tensors.get(name).ok_or_else(|| missing(name))?;
        slice_tensor(name, bytes, range)
    }
}

fn missing(name: &str) -> QuantError {
    QuantError::MissingTensor {
        tensor: name.to_owned(),
        needed: "it was to be read".to_owned(),
    }
}

/// Counts which bytes of which tensors are read.
#[derive(Debug)]
pub struct CountingSource<S> {
    source: S,
    /// Disjoint ranges in order, per tensor.
    read: Mutex<BTreeMap<String, Vec<Range<usize>>>>,
}

impl<S: TensorSource> CountingSource<S> {
    /// Counts what is read from `source`.
    pub fn new(source: S) -> Self {
        Self {
            source,
            read: Mutex::default(),
        }
    }

    /// Distinct bytes read so far of each tensor.
    pub fn bytes_read(&self) -> BTreeMap<String, usize> {
        let read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.iter()
            .map(|(name, ranges)| (name.clone(), ranges.iter().map(Range::len).sum()))
            .collect()
    }

    /// Distinct bytes read so far of all tensors.
    pub fn total_bytes_read(&self) -> usize {
        self.bytes_read().values().sum()
    }
}

impl<S: TensorSource> TensorSource for CountingSource<S> {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        self.source.info(name)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Bytes, QuantError> {
        let bytes = self.source.read(name, range.clone())?;
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        merge(read.entry(name.to_owned()).or_default(), range);
        Ok(bytes)
    }
}

fn merge(ranges: &mut Vec<Range<usize>>, new: Range<usize>) {
    ranges.push(new);
    ranges.sort_unstable_by_key(|r| r.start);
    let mut merged = Vec::<Range<usize>>::with_capacity(ranges.len());
    for range in ranges.drain(..) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    *ranges = merged;
}

impl<S: TensorSource + ?Sized> TensorSource for &S {
    fn info(&self, name: &str) -> Option<TensorInfo> {
        (**self).info(name)
    }

    fn read(&self, name: &str, range: Range<usize>) -> Result<Bytes, QuantError> {
        (**self).read(name, range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_counted_once() {
        let mut memory = MemorySource::default();
        memory.insert("a", TensorDtype::U8, [10], vec![0; 10]);
        let source = CountingSource::new(&memory);
        for range in [6..8, 0..3, 2..4, 4..4, 7..9] {
            source.read("a", range).unwrap();
        }
        assert_eq!(source.bytes_read(), BTreeMap::from([("a".to_owned(), 7)]));
        assert!(source.read("a", 5..11).is_err());
        assert!(source.read("b", 0..1).is_err());
        assert_eq!(source.total_bytes_read(), 7);
    }

    #[test]
    fn sizes_that_overflow_have_no_bytes() {
        let info = TensorInfo {
            dtype: TensorDtype::F64,
            shape: vec![usize::MAX / 16, 3],
        };
        assert_eq!(info.num_bytes(), None);
    }
}
