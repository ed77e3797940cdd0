//! What a call needs besides weights, kept for the next one.
#![allow(unsafe_code, reason = "buffers that threads write disjoint parts of")]

use std::marker::PhantomData;
use std::slice;
use std::sync::{Mutex, PoisonError};

use crate::KernelError;
use crate::memory::Buffer;

/// The workspaces that no call is using.
#[derive(Debug, Default)]
pub(crate) struct Workspaces(Mutex<Vec<Workspace>>);

impl Workspaces {
    pub(super) fn take(&self) -> Workspace {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.pop().unwrap_or_default()
    }

    pub(super) fn put(&self, workspace: Workspace) {
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(workspace);
    }
}

/// The buffers of a call.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    pub(super) quantized: Buffer,
    pub(super) intermediate: Buffer,
    pub(super) terms: Buffer,
    pub(super) threads: Vec<ThreadBuffers>,
}

/// The buffers of a thread.
#[derive(Debug, Default)]
pub(super) struct ThreadBuffers {
    packed: [Buffer; 2],
    sums: Buffer,
    block: Buffer,
}

/// Lengths of the slices in a [`Scratch`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) packed: usize,
    pub(super) sums: usize,
    pub(super) block: usize,
}

impl ThreadBuffers {
    pub(super) fn scratch(
        &mut self,
        member: usize,
        sizes: Sizes,
    ) -> Result<Scratch<'_>, KernelError> {
        let [first, second] = &mut self.packed;
        let floats = |buffer| -> &mut [f32] { bytemuck::cast_slice_mut(buffer) };
        Ok(Scratch {
            member,
            packed: [first.reserve(sizes.packed)?, second.reserve(sizes.packed)?],
            packed_part: None,
            sums: floats(self.sums.reserve(sizes.sums)?),
            block: floats(self.block.reserve(sizes.block)?),
        })
    }
}

/// What one thread works with.
pub(super) struct Scratch<'a> {
    /// Which of the threads of a call it is.
    pub(super) member: usize,
    /// The inputs of gate and of up.
    pub(super) packed: [&'a mut [u32]; 2],
    /// The chunk whose inputs `packed` holds.
    pub(super) packed_part: Option<usize>,
    /// `[rows, SUMS]`
    pub(super) sums: &'a mut [f32],
    /// Widened weights.
    pub(super) block: &'a mut [f32],
}

/// A buffer that threads write disjoint parts of.
#[derive(Clone, Copy)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    buffer: PhantomData<&'a mut [T]>,
}

// SAFETY: all access goes through `part` and `part_mut`, whose callers promise that no part that
// is written is used by another thread.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send + Sync> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(buffer: &'a mut [T]) -> Self {
        Self {
            start: buffer.as_mut_ptr(),
            len: buffer.len(),
            buffer: PhantomData,
        }
    }

    /// # Safety
    ///
    /// No one writes the part meanwhile.
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &'a [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "a part of the buffer"
        );
        // SAFETY: within the buffer, whose borrow outlives the part; the rest is promised.
        unsafe { slice::from_raw_parts(self.start.add(start), len) }
    }

    /// # Safety
    ///
    /// No one else uses the part meanwhile.
    pub(super) unsafe fn part_mut(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(
            start <= self.len && len <= self.len - start,
            "a part of the buffer"
        );
        // SAFETY: within the buffer, whose borrow outlives the part; the rest is promised.
        unsafe { slice::from_raw_parts_mut(self.start.add(start), len) }
    }
}
