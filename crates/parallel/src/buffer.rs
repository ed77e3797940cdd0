//! What travels between ranks.

use std::borrow::Cow;
use std::fmt;

use bytemuck::Pod;
use bytes::Bytes;

use crate::CommError;

/// A message between ranks: immutable, reference-counted bytes.
///
/// Cloning and splitting share the memory. Where the bytes lie is not part of the type's promise:
/// today it is host memory, so [`Buffer::view`] borrows; a buffer in device memory would copy to
/// the host there, and nowhere else.
///
/// ```
/// use moekit_parallel::Buffer;
///
/// let buffer = Buffer::from_vec(vec![1.5f32, -2.0]);
/// assert_eq!(buffer.len(), 8);
/// assert_eq!(*buffer.view::<f32>()?, [1.5, -2.0]);
/// assert!(buffer.view::<[f32; 3]>().is_err()); // 8 bytes are not a multiple of 12
/// # Ok::<(), moekit_parallel::CommError>(())
/// ```
#[derive(Clone, Default)]
pub struct Buffer(Bytes);

/// Bytes per value; types without a size do not compile.
pub(crate) const fn value_size<T>() -> usize {
    assert!(size_of::<T>() > 0, "values without a size cannot travel");
    size_of::<T>()
}

/// Keeps a vector of values alive as the owner of its bytes.
struct Values<T>(Vec<T>);

impl<T: Pod> AsRef<[u8]> for Values<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

impl Buffer {
    /// Takes over the memory of `values`, without a copy.
    pub fn from_vec<T: Pod + Send>(values: Vec<T>) -> Self {
        const { value_size::<T>() };
        Self(Bytes::from_owner(Values(values)))
    }

    /// The length in bytes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The bytes in host memory, shared rather than copied if they lie there.
    pub fn to_bytes(&self) -> Bytes {
        self.0.clone()
    }

    /// The bytes as values: borrowed if they are aligned for `T`, copied otherwise. A buffer made
    /// by [`Buffer::from_vec`] from the same type is aligned, and so is each block of its values.
    ///
    /// # Errors
    ///
    /// [`CommError::ElementSize`] if the length is not a multiple of the size of `T`.
    pub fn view<T: Pod>(&self) -> Result<Cow<'_, [T]>, CommError> {
        self.check_multiple_of(const { value_size::<T>() })?;
        Ok(self.whole_values())
    }

    /// [`Buffer::view`] of a buffer that has been checked.
    pub(crate) fn whole_values<T: Pod>(&self) -> Cow<'_, [T]> {
        let values = self.0.chunks_exact(const { value_size::<T>() });
        match bytemuck::try_cast_slice(&self.0) {
            Ok(aligned) => Cow::Borrowed(aligned),
            Err(_) => Cow::Owned(values.map(bytemuck::pod_read_unaligned).collect()),
        }
    }

    pub(crate) fn check_multiple_of(&self, element_size: usize) -> Result<(), CommError> {
        if self.len().is_multiple_of(element_size) {
            return Ok(());
        }
        Err(CommError::ElementSize {
            len: self.len(),
            element_size,
        })
    }

    /// The value at the begin, and what is behind it; `None` if there is less.
    pub(crate) fn split_header<T: Pod>(&self) -> Option<(T, Self)> {
        let (header, _) = self.0.split_at_checked(const { value_size::<T>() })?;
        let rest = self.0.slice(header.len()..);
        Some((bytemuck::pod_read_unaligned(header), Self(rest)))
    }

    /// The first bytes, at most all.
    pub(crate) fn truncated(mut self, len: usize) -> Self {
        self.0.truncate(len);
        self
    }

    /// Consecutive parts of the given lengths in bytes, which together are the whole.
    pub(crate) fn split(&self, lengths: &[usize]) -> Result<Vec<Self>, CommError> {
        let sum = lengths.iter().try_fold(0usize, |a, &b| a.checked_add(b));
        if sum != Some(self.len()) {
            return Err(CommError::CountsSum {
                counts: lengths.to_vec(),
                len: self.len(),
            });
        }
        let mut rest = self.0.clone();
        Ok(lengths.iter().map(|&n| Self(rest.split_to(n))).collect())
    }
}

impl From<Bytes> for Buffer {
    fn from(bytes: Bytes) -> Self {
        Self(bytes)
    }
}

impl From<Vec<u8>> for Buffer {
    fn from(bytes: Vec<u8>) -> Self {
        Self(bytes.into())
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} bytes)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_vector_is_shared_not_copied() {
        let values = vec![1u64, 2, 3];
        let address = values.as_ptr();
        let buffer = Buffer::from_vec(values);
        let parts = buffer.split(&[8, 0, 16]).unwrap();
        assert_eq!(parts[0].view::<u64>().unwrap().as_ptr(), address);
        assert!(parts[1].is_empty());
        assert_eq!(*parts[2].view::<u64>().unwrap(), [2, 3]);
        assert!(matches!(parts[2].view::<u64>().unwrap(), Cow::Borrowed(_)));
    }

    #[test]
    fn unaligned_values_are_copied() {
        let bytes = Buffer::from_vec(vec![0x0201_0000_0000u64.to_le(), 0x0605_0403u64.to_le()]);
        let parts = bytes.split(&[1, 8, 7]).unwrap();
        let expected = u64::from_ne_bytes(bytes.to_bytes()[1..9].try_into().unwrap());
        assert!(matches!(parts[1].view::<u64>().unwrap(), Cow::Owned(_)));
        assert_eq!(*parts[1].view::<u64>().unwrap(), [expected]);
    }

    #[test]
    fn empty_views_of_any_type() {
        assert!(Buffer::default().view::<f64>().unwrap().is_empty());
        assert!(
            Buffer::from_vec::<u16>(vec![])
                .view::<f64>()
                .unwrap()
                .is_empty()
        );
    }

    #[test]
    fn wrong_lengths_are_named() {
        let buffer = Buffer::from(vec![0u8; 6]);
        assert_eq!(
            buffer.view::<f32>().unwrap_err(),
            CommError::ElementSize {
                len: 6,
                element_size: 4
            }
        );
        for counts in [vec![1, 4], vec![7], vec![], vec![usize::MAX, 7]] {
            assert_eq!(
                buffer.split(&counts).unwrap_err(),
                CommError::CountsSum { counts, len: 6 }
            );
        }
    }
}
