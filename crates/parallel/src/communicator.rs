use std::fmt::Debug;
use std::sync::Arc;

use bytemuck::Pod;
use moekit_routing::Rank;

use crate::buffer::value_size;
use crate::{Blocks, Buffer, CommError, ElementType, ReduceOp, Reducible};

/// The largest tag of a message. MPI promises 32767 (MPI 4.1, section 9.1.2, `MPI_TAG_UB`), of which
/// a transport has the last one for itself.
pub const MAX_TAG: u32 = 32_766;

/// One rank's end of a group of ranks.
///
/// Every rank makes the same collective calls in the same order. A message of length 0, and a rank
/// that has nothing to contribute, are legal everywhere; so is a group of one.
///
/// # Failure
///
/// An error in a collective (a wrong argument on one rank included), [`Communicator::abort`], and a
/// rank that fails end the group: what has arrived can still be received, every other call that
/// waits or comes later, on any rank, returns the error. No call waits for a rank that cannot answer.
/// Survivors go on in a [`Communicator::subgroup`], also one of a group that has ended: a rank that
/// is gone is gone from every group, but an error, a mismatch or an abort ends the one group in
/// which it came about. A rank that returns, or whose process is killed where the transport outlives
/// that, [is gone](Communicator::is_gone): collectives and messages that need it are errors, messages
/// between others go on.
///
/// # Threads
///
/// A communicator can be shared, but takes one call at a time (as `ncclComm_t` does, and MPI's
/// collectives); [`Communicator::abort`] alone may come from any thread at any time. Traffic that
/// is to run beside other traffic has a communicator of its own.
///
/// # Other transports
///
/// Callers see only this trait, [`Buffer`] and [`Blocks`]; a transport fills them in its own way:
///
/// * **TCP** (`TcpGroup`). A part of a collective travels with its header; a thread per connection
///   takes in what comes. A process that is killed has returned without a word.
/// * **MPI** (feature `mpi`, `MpiGroup`). An all-to-all of small headers (the name of the call, and
///   the bytes that follow) tells each rank what it will receive and lets all of them report a
///   mismatch; `MPI_Ialltoallv` and `MPI_Iallgatherv` then read the send buffer in place with the
///   counts and their running sums as displacements, and fill one allocation, which becomes
///   [`Blocks::contiguous`]. A buffer that is being sent stays alive by its reference count until
///   the request is complete, so `send` need not wait. Reductions exchange parts by all-to-all and
///   add them in rank order: `MPI_Allreduce` promises no order. Nothing blocks in MPI: a wait tests
///   its request and listens for notices of ranks that fail, abort or return.
/// * **NCCL.** The arguments are those of `ncclSend`, `ncclRecv` and `ncclAllReduce` (element type
///   and operation are named), and [`Buffer`] does not say where its bytes lie: one that holds
///   device memory goes through the same calls, and only [`Buffer::view`] and
///   [`Buffer::to_bytes`] copy it to the host. Headers and notices stay on the host, over MPI or
///   sockets; lengths are known on the host before a device call is enqueued. NCCL has no tags:
///   messages of two ranks are matched by order, with the tag checked on arrival.
///   [`Communicator::subgroup`] is `ncclCommSplit`, or a new `ncclCommInitRank` of the survivors
///   after `ncclCommAbort`.
///
/// Calls that start now and end later (to overlap communication with computation) would be new
/// methods whose default runs the blocking one.
pub trait Communicator: Debug + Send + Sync {
    /// This rank.
    fn rank(&self) -> Rank;

    /// The number of ranks, at least 1.
    fn size(&self) -> usize;

    /// Sends to each rank its part of `send`, and receives a block from each.
    ///
    /// # Arguments
    ///
    /// * `send`: the parts for ranks 0, 1, ..., one behind the other.
    /// * `counts`: `[size]`, the length of each part in bytes.
    ///
    /// # Errors
    ///
    /// [`CommError::NumCounts`], [`CommError::CountsSum`], and those of any collective:
    /// [`CommError::PeerFailed`], [`CommError::PeerReturned`], [`CommError::Mismatch`],
    /// [`CommError::Deadlock`], [`CommError::Concurrent`].
    fn all_to_all_v(&self, send: Buffer, counts: &[usize]) -> Result<Blocks, CommError>;

    /// Gives every rank the buffers of all ranks, of any lengths, in rank order.
    ///
    /// # Errors
    ///
    /// Those of any collective, see [`Communicator::all_to_all_v`].
    fn all_gather_v(&self, send: Buffer) -> Result<Blocks, CommError>;

    /// Reduces value by value over the ranks, in rank order: all ranks get the same bits, in every
    /// run.
    ///
    /// # Errors
    ///
    /// [`CommError::Mismatch`] unless lengths, types and operations are the same on all ranks;
    /// [`CommError::ElementSize`], [`CommError::Overflow`]; those of any collective, see
    /// [`Communicator::all_to_all_v`].
    fn all_reduce(
        &self,
        values: Buffer,
        element: ElementType,
        op: ReduceOp,
    ) -> Result<Buffer, CommError>;

    /// Hands over a message, also to this rank itself; does not wait until it is received. Messages
    /// from one rank to another with the same tag arrive in the order in which they were sent.
    ///
    /// # Errors
    ///
    /// [`CommError::UnknownRank`], [`CommError::Tag`] if `tag` is above [`MAX_TAG`],
    /// [`CommError::PeerFailed`] or another error that has ended the group.
    fn send(&self, to: Rank, tag: u32, message: Buffer) -> Result<(), CommError>;

    /// Waits for the next message of that rank with that tag.
    ///
    /// # Errors
    ///
    /// [`CommError::UnknownRank`], [`CommError::Tag`]; [`CommError::PeerFailed`],
    /// [`CommError::PeerReturned`], [`CommError::Deadlock`] if no such message can come;
    /// [`CommError::Concurrent`].
    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError>;

    /// The next message of that rank with that tag, if it has come. Does not wait, not even for one
    /// that can never come.
    ///
    /// # Errors
    ///
    /// [`CommError::UnknownRank`], [`CommError::Tag`]; [`CommError::Unsupported`] from a transport
    /// that cannot look without waiting.
    fn try_recv(&self, from: Rank, tag: u32) -> Result<Option<Buffer>, CommError> {
        let _ = (from, tag);
        Err(CommError::Unsupported {
            what: "look at messages without waiting",
        })
    }

    /// Whether that rank makes no further call, as far as this rank has heard: it has returned or
    /// failed, or its process has ended. Its messages have come before. A transport that cannot tell
    /// says `false`.
    fn is_gone(&self, rank: Rank) -> bool {
        let _ = rank;
        false
    }

    /// Waits until every rank has come here.
    ///
    /// # Errors
    ///
    /// Those of any collective, see [`Communicator::all_to_all_v`].
    fn barrier(&self) -> Result<(), CommError>;

    /// Ends the group in the name of this rank. The calls of all ranks, this one included, return
    /// [`CommError::PeerFailed`] with the message, unless an earlier error has ended the group.
    ///
    /// Returns the error to pass on: `return Err(comm.abort("no memory for 3 experts"))`.
    fn abort(&self, message: &str) -> CommError;

    /// A group of some of these ranks, numbered in the order given; `None` on a rank that is not
    /// among them, which need not call at all.
    ///
    /// Every rank named makes the same calls of this method in the same order; it may wait for
    /// them, but for no other rank. The group is independent of this one: its calls may run beside
    /// those of this group on another thread, and it goes on if this group ends. It can be made
    /// from a group that has ended, so that the survivors of a rank go on:
    ///
    /// ```
    /// use moekit_parallel::{CommError, Communicator, CommunicatorExt, ReduceOp, ThreadGroup};
    /// use moekit_routing::Rank;
    ///
    /// let sums = ThreadGroup::run(3, |comm| {
    ///     if comm.rank().index() == 1 {
    ///         comm.abort("out of memory");
    ///         return Ok(None);
    ///     }
    ///     comm.barrier().unwrap_err();
    ///     let Some(survivors) = comm.subgroup(&[Rank::new(0), Rank::new(2)])? else { return Ok(None) };
    ///     let mine = vec![comm.rank().index() as f32];
    ///     survivors.all_reduce_values(mine, ReduceOp::Sum).map(Some)
    /// });
    /// assert_eq!(sums?, [Some(vec![2.0]), None, Some(vec![2.0])]);
    /// # Ok::<(), moekit_parallel::GroupError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`CommError::UnknownRank`], [`CommError::DuplicateRank`]; [`CommError::PeerFailed`] and
    /// [`CommError::PeerReturned`], here or in the first call of the group, if a rank named is
    /// gone; [`CommError::Unsupported`] from a transport without subgroups.
    fn subgroup(&self, ranks: &[Rank]) -> Result<Option<Arc<dyn Communicator>>, CommError> {
        let _ = ranks;
        Err(CommError::Unsupported { what: "subgroups" })
    }
}

/// Whether a message can go to or come from that rank with that tag.
pub(crate) fn check_peer(peer: Rank, tag: u32, size: usize) -> Result<(), CommError> {
    if peer.index() >= size {
        return Err(CommError::UnknownRank { rank: peer, size });
    }
    if tag > MAX_TAG {
        return Err(CommError::Tag { tag, max: MAX_TAG });
    }
    Ok(())
}

/// Position of `me` among `ranks`, each of which must be a rank of the group and be there once.
pub(crate) fn position_in(
    ranks: &[Rank],
    me: usize,
    size: usize,
) -> Result<Option<usize>, CommError> {
    let mut seen = vec![false; size];
    for &rank in ranks {
        match seen.get_mut(rank.index()) {
            None => return Err(CommError::UnknownRank { rank, size }),
            Some(true) => return Err(CommError::DuplicateRank { rank }),
            Some(seen) => *seen = true,
        }
    }
    Ok(ranks.iter().position(|rank| rank.index() == me))
}

/// Values instead of bytes, for every [`Communicator`].
///
/// Sending takes over the memory of the vectors; counts are numbers of values.
///
/// ```
/// use moekit_parallel::{Communicator, CommunicatorExt, CommError, ThreadGroup};
///
/// // Rank r sends to rank d: d values, each of them r.
/// let received = ThreadGroup::run(3, |comm| {
///     let send = vec![comm.rank().raw(); 3];
///     let blocks = comm.all_to_all_values(send, &[0, 1, 2])?;
///     Ok::<_, CommError>(blocks.concat().into_owned())
/// })?;
/// assert_eq!(received, [vec![], vec![0, 1, 2], vec![0, 0, 1, 1, 2, 2]]);
/// # Ok::<(), moekit_parallel::GroupError>(())
/// ```
pub trait CommunicatorExt: Communicator {
    /// [`Communicator::all_to_all_v`] of values; `counts` is `[size]`, the number of values for each
    /// rank.
    ///
    /// # Errors
    ///
    /// Those of [`Communicator::all_to_all_v`]; [`CommError::ElementSize`] if a rank sent another
    /// type.
    fn all_to_all_values<T: Pod + Send>(
        &self,
        send: Vec<T>,
        counts: &[usize],
    ) -> Result<Blocks<T>, CommError> {
        // Counts too large for memory add up to no buffer's length, whatever they become here.
        let lengths: Vec<usize> = counts
            .iter()
            .map(|count| count.saturating_mul(const { value_size::<T>() }))
            .collect();
        self.all_to_all_v(Buffer::from_vec(send), &lengths)?.cast()
    }

    /// [`Communicator::all_gather_v`] of values.
    ///
    /// # Errors
    ///
    /// Those of [`Communicator::all_gather_v`]; [`CommError::ElementSize`] if a rank sent another
    /// type.
    fn all_gather_values<T: Pod + Send>(&self, send: Vec<T>) -> Result<Blocks<T>, CommError> {
        self.all_gather_v(Buffer::from_vec(send))?.cast()
    }

    /// [`Communicator::all_reduce`] of values.
    ///
    /// # Errors
    ///
    /// Those of [`Communicator::all_reduce`].
    fn all_reduce_values<T: Reducible>(
        &self,
        values: Vec<T>,
        op: ReduceOp,
    ) -> Result<Vec<T>, CommError> {
        let reduced = self.all_reduce(Buffer::from_vec(values), T::ELEMENT, op)?;
        Ok(reduced.view::<T>()?.into_owned())
    }

    /// [`Communicator::send`] of values.
    ///
    /// # Errors
    ///
    /// Those of [`Communicator::send`].
    fn send_values<T: Pod + Send>(
        &self,
        to: Rank,
        tag: u32,
        values: Vec<T>,
    ) -> Result<(), CommError> {
        self.send(to, tag, Buffer::from_vec(values))
    }

    /// [`Communicator::recv`] of values.
    ///
    /// # Errors
    ///
    /// Those of [`Communicator::recv`]; [`CommError::ElementSize`] if the rank sent another type.
    fn recv_values<T: Pod>(&self, from: Rank, tag: u32) -> Result<Vec<T>, CommError> {
        Ok(self.recv(from, tag)?.view::<T>()?.into_owned())
    }
}

impl<C: Communicator + ?Sized> CommunicatorExt for C {}
