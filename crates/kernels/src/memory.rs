//! Anonymous memory for weights and for what lies between the steps of a layer.
#![allow(unsafe_code, reason = "memory shared by disjoint parts")]

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::slice;
use std::sync::Arc;

use memmap2::{Advice, MmapMut, MmapRaw, UncheckedAdvice};

use crate::KernelError;

/// Where parts of an arena begin: the bytes of a cache line, and of the widest vector.
pub(crate) const ALIGN: usize = 64;
/// The largest pages of systems without huge ones: advice on parts of pages reaches others.
const PAGE: usize = 64 << 10;
const HUGE_PAGE: usize = 2 << 20;

/// Zeroed memory from the system, in huge pages where it has them: 10 to 14 % more bandwidth than
/// in small ones, and no misses of the TLB in the middle of a panel.
struct Mapping {
    /// Never seen as one slice, which would overlap those of its parts.
    map: MmapRaw,
    start: usize,
}

impl Mapping {
    fn new(len: usize) -> Result<Self, KernelError> {
        // Huge pages begin at multiples of their size; the slack is never touched.
        let slack = if len >= HUGE_PAGE { HUGE_PAGE } else { 0 };
        let error = |message: String| KernelError::Memory {
            bytes: len,
            message,
        };
        let total = len
            .max(1)
            .checked_add(slack)
            .filter(|total| *total <= isize::MAX as usize)
            .ok_or_else(|| error("more than the address space".to_owned()))?;
        let map = MmapMut::map_anon(total).map_err(|e| error(e.to_string()))?;
        let map = MmapRaw::from(map);
        let start = match slack {
            0 => 0,
            _ => map.as_ptr().align_offset(HUGE_PAGE).min(slack),
        };
        if slack > 0 {
            // A system without huge pages refuses, and small pages do as well.
            let whole = len / HUGE_PAGE * HUGE_PAGE;
            map.advise_range(Advice::HugePage, start, whole).ok();
        }
        Ok(Self { map, start })
    }
}

/// Memory that is handed out in parts, each of which goes back to the system by itself.
pub(crate) struct Arena {
    mapping: Arc<Mapping>,
    len: usize,
    used: usize,
}

impl Arena {
    /// Room for parts that take `len` bytes in all, each rounded up by [`Arena::rounded`].
    pub(crate) fn new(len: usize) -> Result<Self, KernelError> {
        let mapping = Arc::new(Mapping::new(len)?);
        Ok(Self {
            mapping,
            len,
            used: 0,
        })
    }

    /// Bytes that a part takes of an arena; the most there can be if that is too much.
    pub(crate) fn rounded(len: usize) -> usize {
        len.checked_next_multiple_of(ALIGN).unwrap_or(usize::MAX)
    }

    /// The next part, zeroed.
    pub(crate) fn take(&mut self, len: usize) -> Result<Region, KernelError> {
        let offset = self.mapping.start + self.used;
        let rounded = Self::rounded(len);
        if rounded > self.len - self.used {
            return Err(KernelError::Memory {
                bytes: len,
                message: format!("the arena has {} left", self.len - self.used),
            });
        }
        self.used += rounded;
        Ok(Region {
            mapping: Arc::clone(&self.mapping),
            offset,
            len,
        })
    }
}

/// A part of an arena, which nothing else refers to.
pub(crate) struct Region {
    mapping: Arc<Mapping>,
    offset: usize,
    len: usize,
}

impl Region {
    fn pointer(&self) -> *mut u8 {
        self.mapping.map.as_mut_ptr().wrapping_add(self.offset)
    }
}

// SAFETY: a region is the only one that refers to its bytes, as a `Vec<u8>` is.
unsafe impl Send for Region {}
// SAFETY: bytes change through `&mut Region` alone.
unsafe impl Sync for Region {}

impl Deref for Region {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: the mapping is alive and holds `offset + len` bytes; no one else refers to
        // these, and `&mut self` is needed to write.
        unsafe { slice::from_raw_parts(self.pointer(), self.len) }
    }
}

impl DerefMut for Region {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and the borrow of `self` is unique.
        unsafe { slice::from_raw_parts_mut(self.pointer(), self.len) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let start = self.offset.next_multiple_of(PAGE);
        let end = (self.offset + self.len) / PAGE * PAGE;
        if start < end && Arc::strong_count(&self.mapping) > 1 {
            let advice = UncheckedAdvice::DontNeed;
            // SAFETY: the whole pages of this region hold nothing else, and no one refers to the
            // region any more. If the system refuses, they go with the mapping.
            unsafe {
                let map = &self.mapping.map;
                map.unchecked_advise_range(advice, start, end - start).ok();
            }
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len)
    }
}

/// A buffer of 4-byte values that grows and is used again, so that its pages are there already.
#[derive(Debug, Default)]
pub(crate) struct Buffer {
    region: Option<Region>,
}

impl Buffer {
    /// At least `len` values, of which nothing is known but that they are initialized.
    pub(crate) fn reserve(&mut self, len: usize) -> Result<&mut [u32], KernelError> {
        let bytes = len.checked_mul(4).ok_or_else(|| KernelError::Memory {
            bytes: usize::MAX,
            message: "more than the address space".to_owned(),
        })?;
        let region = match self.region.take() {
            Some(region) if region.len >= bytes => region,
            _ => Arena::new(Arena::rounded(bytes))?.take(Arena::rounded(bytes))?,
        };
        let region = self.region.insert(region);
        // SAFETY: the region is aligned to `ALIGN`, and any bytes are a `u32`.
        Ok(unsafe { slice::from_raw_parts_mut(region.pointer().cast(), len) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_do_not_overlap() {
        let sizes = [1, 64, 5000, 3 << 20, 0, 100];
        let total = sizes.iter().map(|&n| Arena::rounded(n)).sum();
        let mut arena = Arena::new(total).unwrap();
        let mut parts: Vec<Region> = sizes.iter().map(|&n| arena.take(n).unwrap()).collect();
        assert!(arena.take(1).is_err());
        for (i, part) in parts.iter_mut().enumerate() {
            assert!(part.iter().all(|&b| b == 0));
            assert!(part.as_ptr().align_offset(ALIGN) == 0);
            part.fill(i as u8 + 1);
        }
        // Pages of a part that is dropped go; those of its neighbours stay.
        drop(parts.remove(2));
        drop(arena);
        for part in &parts {
            assert!(part.windows(2).all(|w| w[0] == w[1] && w[0] != 0));
        }
    }

    #[test]
    fn too_much_is_refused() {
        assert!(Arena::new(usize::MAX).is_err());
        assert!(Arena::new(100).unwrap().take(usize::MAX - 1).is_err());
        assert!(Buffer::default().reserve(usize::MAX / 2).is_err());
    }

    #[test]
    fn a_buffer_keeps_its_memory() {
        let mut buffer = Buffer::default();
        buffer.reserve(100).unwrap().fill(7);
        assert_eq!(buffer.reserve(100).unwrap()[99], 7);
        assert_eq!(buffer.reserve(1000).unwrap().len(), 1000);
        assert_eq!(buffer.reserve(0).unwrap().len(), 0);
    }
}
