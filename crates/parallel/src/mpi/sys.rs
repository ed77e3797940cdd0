//! The calls of MPI that start now and end later.
//!
//! The bindings' own safe requests borrow their buffers, which a wait that is given up cannot
//! return; an [`Operation`] owns them. A failed call of MPI ends the job with MPI's message: that is
//! MPI's default error handler, which nobody replaces here.
#![allow(
    unsafe_code,
    reason = "MPI is a C library; each block has its argument, the tests run under mpirun"
)]

use std::ffi::{c_int, c_void};
use std::fmt;
use std::mem::{self, ManuallyDrop, MaybeUninit};

use bytes::Bytes;
use mpi::ffi;
use mpi::raw::AsRaw;
use mpi::topology::{Communicator as _, Group as _, SimpleCommunicator};

use crate::Buffer;

/// Leave to call MPI. There is one, and it is behind a lock, so that calls never overlap: MPI is
/// started for `MPI_THREAD_SERIALIZED`.
#[derive(Debug)]
pub(super) struct Mpi(());

impl Mpi {
    /// To be called once, after `MPI_Init`.
    pub(super) fn new() -> Self {
        Self(())
    }

    /// A group that is apart from all others, of the processes of `MPI_COMM_WORLD` given, this one
    /// among them, numbered in the order given. Waits for all of them to come here.
    pub(super) fn create_group(&mut self, world_ranks: &[c_int]) -> Option<Comm> {
        let world = SimpleCommunicator::world();
        let group = world.group().include(world_ranks);
        world.split_by_subgroup(&group).map(Comm::new)
    }
}

/// A communicator of MPI.
pub(super) struct Comm {
    /// Dropping it calls MPI, which takes [`Mpi`].
    inner: ManuallyDrop<SimpleCommunicator>,
    raw: ffi::MPI_Comm,
}

// SAFETY: MPI's handles belong to the process, not to a thread (MPI 4.1, section 11.6); that their
// use does not overlap is what `&mut Mpi` is for.
unsafe impl Send for Comm {}

/// A message that is on its way in.
#[derive(Debug)]
pub(super) struct Arrival {
    pub(super) source: usize,
    pub(super) tag: u32,
    pub(super) operation: Operation,
}

impl fmt::Debug for Comm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Comm").field(&self.raw).finish()
    }
}

impl Comm {
    fn new(inner: SimpleCommunicator) -> Self {
        Self {
            raw: inner.as_raw(),
            inner: ManuallyDrop::new(inner),
        }
    }

    /// Sends a message of at most `c_int::MAX` bytes.
    pub(super) fn send(&self, _: &mut Mpi, to: usize, tag: u32, message: Bytes) -> Operation {
        let mut operation = Operation::new(message, 0, Vec::new());
        // SAFETY: the operation owns the bytes and keeps them until the request is complete.
        unsafe {
            ffi::MPI_Isend(
                operation.send_pointer(),
                int(operation.send.len()),
                ffi::RSMPI_UINT8_T,
                int(to),
                tag as c_int,
                self.raw,
                &raw mut operation.request,
            );
        }
        operation
    }

    /// Starts to receive the next message from anywhere with any tag, if one has come. Messages of
    /// one source come in the order in which they were sent.
    pub(super) fn next_arrival(&self, _: &mut Mpi) -> Option<Arrival> {
        let mut found = 0;
        let mut message = MaybeUninit::<ffi::MPI_Message>::uninit();
        let mut status = MaybeUninit::<ffi::MPI_Status>::uninit();
        // SAFETY: all three are written before they are read: the flag always, the others if it is set.
        unsafe {
            ffi::MPI_Improbe(
                ffi::RSMPI_ANY_SOURCE,
                ffi::RSMPI_ANY_TAG,
                self.raw,
                &raw mut found,
                message.as_mut_ptr(),
                status.as_mut_ptr(),
            );
        }
        if found == 0 {
            return None;
        }
        let mut count = 0;
        // SAFETY: the probe has found a message and written its status.
        let status = unsafe { status.assume_init() };
        // SAFETY: the type is the one of the send.
        unsafe { ffi::MPI_Get_count(&raw const status, ffi::RSMPI_UINT8_T, &raw mut count) };
        let len = usize::try_from(count).unwrap_or(0);
        let mut operation = Operation::new(Bytes::new(), len, Vec::new());
        // SAFETY: the message was matched just now; the operation owns `len` bytes to receive into,
        // which nobody touches until the request is complete.
        unsafe {
            ffi::MPI_Imrecv(
                operation.receive_pointer(),
                count,
                ffi::RSMPI_UINT8_T,
                message.as_mut_ptr(),
                &raw mut operation.request,
            );
        }
        Some(Arrival {
            source: usize::try_from(status.MPI_SOURCE).unwrap_or(0),
            tag: u32::try_from(status.MPI_TAG).unwrap_or(0),
            operation,
        })
    }

    /// Sends to each process as many bytes of `send` as to any other: all of `send` over `size`.
    pub(super) fn all_to_all(&self, _: &mut Mpi, send: &Bytes, size: usize) -> Operation {
        let each = int(send.len() / size);
        let mut operation = Operation::new(send.clone(), send.len(), Vec::new());
        // SAFETY: `size` is the size of the group, so that both buffers hold `size * each` bytes;
        // the operation owns both until the request is complete.
        unsafe {
            ffi::MPI_Ialltoall(
                operation.send_pointer(),
                each,
                ffi::RSMPI_UINT8_T,
                operation.receive_pointer(),
                each,
                ffi::RSMPI_UINT8_T,
                self.raw,
                &raw mut operation.request,
            );
        }
        operation
    }

    /// Sends to each process its part of `send`, read in place.
    pub(super) fn all_to_all_v(
        &self,
        _: &mut Mpi,
        send: Bytes,
        to: &Parts,
        from: &Parts,
    ) -> Operation {
        let counts = vec![
            to.counts.clone(),
            to.displacements.clone(),
            from.counts.clone(),
            from.displacements.clone(),
        ];
        assert!(to.len <= send.len(), "the parts lie in the buffer");
        let mut operation = Operation::new(send, from.len, counts);
        // SAFETY: the parts lie in the two buffers (checked above; allocated for the other); the
        // operation owns them and the counts until the request is complete.
        unsafe {
            ffi::MPI_Ialltoallv(
                operation.send_pointer(),
                operation.counts[0].as_ptr(),
                operation.counts[1].as_ptr(),
                ffi::RSMPI_UINT8_T,
                operation.receive_pointer(),
                operation.counts[2].as_ptr(),
                operation.counts[3].as_ptr(),
                ffi::RSMPI_UINT8_T,
                self.raw,
                &raw mut operation.request,
            );
        }
        operation
    }

    /// Sends `send` to every process.
    pub(super) fn all_gather_v(&self, _: &mut Mpi, send: Bytes, from: &Parts) -> Operation {
        let counts = vec![from.counts.clone(), from.displacements.clone()];
        let mut operation = Operation::new(send, from.len, counts);
        // SAFETY: as for `all_to_all_v`.
        unsafe {
            ffi::MPI_Iallgatherv(
                operation.send_pointer(),
                int(operation.send.len()),
                ffi::RSMPI_UINT8_T,
                operation.receive_pointer(),
                operation.counts[0].as_ptr(),
                operation.counts[1].as_ptr(),
                ffi::RSMPI_UINT8_T,
                self.raw,
                &raw mut operation.request,
            );
        }
        operation
    }

    /// Gives the communicator back to MPI. Every process of the group does, when no operation of
    /// any of them is under way.
    pub(super) fn free(self, _: &mut Mpi) {
        drop(ManuallyDrop::into_inner(self.inner));
    }
}

/// The parts of a buffer, one per process, side by side.
#[derive(Debug)]
pub(super) struct Parts {
    counts: Vec<c_int>,
    displacements: Vec<c_int>,
    len: usize,
}

impl Parts {
    /// Parts of these lengths, or the length of the whole if it is beyond what MPI can count.
    pub(super) fn new(lengths: &[usize]) -> Result<Self, usize> {
        let len = lengths.iter().fold(0usize, |a, &b| a.saturating_add(b));
        if c_int::try_from(len).is_err() {
            return Err(len);
        }
        let starts = lengths.iter().scan(0, |end, &length| {
            let start = *end;
            *end += length;
            Some(int(start))
        });
        Ok(Self {
            displacements: starts.collect(),
            counts: lengths.iter().map(|&length| int(length)).collect(),
            len,
        })
    }
}

/// A length that has been found to fit.
fn int(length: usize) -> c_int {
    c_int::try_from(length).unwrap_or_else(|_| unreachable!("{length} was checked"))
}

/// A request and all that MPI reads and writes until it is complete.
///
/// One that is dropped before that leaves its memory to MPI for good.
#[derive(Debug)]
pub(super) struct Operation {
    request: ffi::MPI_Request,
    complete: bool,
    send: Bytes,
    /// In words, so that what is received is aligned for any value.
    receive: Vec<u64>,
    /// Bytes of `receive` that are used.
    len: usize,
    counts: Vec<Vec<c_int>>,
}

// SAFETY: as for `Comm`; everything else in it is owned.
unsafe impl Send for Operation {}

impl Operation {
    fn new(send: Bytes, receive: usize, counts: Vec<Vec<c_int>>) -> Self {
        Self {
            // SAFETY: a constant of the library.
            request: unsafe { ffi::RSMPI_REQUEST_NULL },
            complete: false,
            send,
            receive: vec![0; receive.div_ceil(size_of::<u64>())],
            len: receive,
            counts,
        }
    }

    fn send_pointer(&self) -> *const c_void {
        self.send.as_ptr().cast()
    }

    fn receive_pointer(&mut self) -> *mut c_void {
        self.receive.as_mut_ptr().cast()
    }

    /// Whether it is complete; lets MPI work on it.
    pub(super) fn is_complete(&mut self, _: &mut Mpi) -> bool {
        if !self.complete {
            let mut flag = 0;
            // SAFETY: the request is valid or null, for which MPI sets the flag.
            unsafe {
                ffi::MPI_Test(
                    &raw mut self.request,
                    &raw mut flag,
                    ffi::RSMPI_STATUS_IGNORE,
                );
            }
            self.complete = flag != 0;
        }
        self.complete
    }

    /// What was received.
    ///
    /// # Panics
    ///
    /// If the operation is not complete.
    pub(super) fn into_received(mut self) -> Buffer {
        assert!(self.complete, "received is what has arrived");
        Buffer::from_vec(mem::take(&mut self.receive)).truncated(self.len)
    }
}

impl Drop for Operation {
    fn drop(&mut self) {
        if !self.complete {
            mem::forget(mem::take(&mut self.send));
            mem::forget(mem::take(&mut self.receive));
            mem::forget(mem::take(&mut self.counts));
        }
    }
}
