use std::ffi::c_int;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use moekit_routing::Rank;

use super::state::{Group, Process, State};
use super::sys::{Comm, Mpi, Operation, Parts};
use crate::call::{Call, Collective};
use crate::communicator::{check_peer, position_in};
use crate::pause::pause;
use crate::reduce::reduce_in_rank_order;
use crate::{Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp};

/// A rank that is a process, made by [`MpiGroup::run`](crate::MpiGroup::run).
///
/// Variable collectives read the sender's buffer in place and fill one allocation, whose blocks lie
/// side by side. A message, and what one rank sends or receives in one collective, has at most
/// `c_int::MAX` bytes (2 GiB − 1): more is [`CommError::TooLarge`].
///
/// Every wait lets MPI work, listens for ranks that fail or return, and yields the core if nothing
/// comes. In contrast to ranks as threads, ranks that wait for each other in a circle (each in a
/// receive, say) are not found: programs that are correct with threads are correct here.
#[derive(Debug)]
pub struct MpiCommunicator {
    pub(super) process: Arc<Process>,
    pub(super) id: u64,
    pub(super) rank: usize,
    pub(super) size: usize,
    /// That of [`MpiGroup::run`](crate::MpiGroup::run), which ends with the rank, not before.
    is_world: bool,
}

/// What each rank says first in a collective: what it called, and what comes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Header {
    kind: u64,
    /// Values of a reduction, the same on all ranks.
    agreed: u64,
    /// 1 more than the index at which a sum has failed.
    overflow: u64,
    /// Bytes that follow, for the rank that gets this header.
    bytes: u64,
}

/// Starts the second part of a collective, when it is known how many bytes come from each rank.
type Start<'a> = &'a dyn Fn(&Comm, &mut Mpi, &[usize]) -> Result<Option<Operation>, CommError>;

impl MpiCommunicator {
    /// All processes. Waits for all of them to come here.
    pub(super) fn world(process: Arc<Process>, rank: usize, size: usize) -> Option<Self> {
        let all: Vec<usize> = (0..size).collect();
        let id = process.lock().make_group(&all, rank)?;
        Some(Self {
            process,
            id,
            rank,
            size,
            is_world: true,
        })
    }

    /// The same end of the world again.
    pub(super) fn share(&self) -> Self {
        Self {
            process: Arc::clone(&self.process),
            ..*self
        }
    }

    /// Does `act` with the group, unless this rank has returned.
    fn with_group<T>(
        &self,
        call: impl FnOnce() -> String,
        act: impl FnOnce(&mut Group, &mut Mpi) -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        let mut state = self.process.lock();
        let State { mpi, groups, .. } = &mut *state;
        match groups.get_mut(&self.id) {
            Some(group) if !group.has_returned => act(group, mpi),
            _ => Err(CommError::PeerReturned {
                rank: self.rank(),
                call: call(),
            }),
        }
    }

    /// Lets MPI work until `ready` has an answer.
    fn wait<T>(
        &self,
        call: Call,
        mut ready: impl FnMut(&mut Group, &mut Mpi) -> Option<Result<T, CommError>>,
    ) -> Result<T, CommError> {
        let mut rounds = 0;
        loop {
            self.process.lock().progress();
            let answer =
                self.with_group(|| call.to_string(), |group, mpi| Ok(ready(group, mpi)))?;
            if let Some(answer) = answer {
                return answer;
            }
            pause(rounds);
            rounds += 1;
        }
    }

    /// Refuses a collective: what this rank got wrong, the others would wait for in vain.
    fn refuse(&self, error: CommError) -> CommError {
        self.abort(&error.to_string());
        error
    }

    /// Notes that this rank is in a call, until the guard is dropped.
    fn enter(&self, call: Call) -> Result<Entered<'_>, CommError> {
        let admit = |group: &mut Group, _: &mut Mpi| match group.call {
            Some(other) => Err(CommError::Concurrent {
                rank: self.rank(),
                call: call.to_string(),
                other_call: other.to_string(),
            }),
            None => {
                group.call = Some(call);
                Ok(Entered { comm: self, call })
            }
        };
        self.with_group(|| call.to_string(), admit)
    }

    fn enter_collective(&self, collective: Collective) -> Result<Entered<'_>, CommError> {
        let call = Call::Collective(collective);
        let failure = |group: &mut Group, _: &mut Mpi| match group.failure() {
            Some(failure) => Err(failure.clone()),
            None => Ok(()),
        };
        self.with_group(|| call.to_string(), failure)?;
        self.enter(call).map_err(|error| self.refuse(error))
    }

    /// All ranks give the buffer of every rank.
    fn gather(
        &self,
        entered: &Entered<'_>,
        header: Header,
        send: &Buffer,
    ) -> Result<Blocks, CommError> {
        let headers = vec![
            Header {
                bytes: send.len() as u64,
                ..header
            };
            self.size
        ];
        let send = send.to_bytes();
        check_fits(send.len()).map_err(|error| self.refuse(error))?;
        entered.exchange(&headers, &|comm, mpi, lengths| {
            let from = parts(lengths)?;
            Ok(Some(comm.all_gather_v(mpi, send.clone(), &from)))
        })
    }

    /// All ranks send each rank its part.
    fn scatter(
        &self,
        entered: &Entered<'_>,
        header: Header,
        send: &Bytes,
        counts: &[usize],
    ) -> Result<Blocks, CommError> {
        let to = parts(counts).map_err(|error| self.refuse(error))?;
        let headers: Vec<Header> = counts
            .iter()
            .map(|&count| Header {
                bytes: count as u64,
                ..header
            })
            .collect();
        entered.exchange(&headers, &|comm, mpi, lengths| {
            let from = parts(lengths)?;
            Ok(Some(comm.all_to_all_v(mpi, send.clone(), &to, &from)))
        })
    }
}

/// A rank in a call.
#[derive(Debug)]
struct Entered<'a> {
    comm: &'a MpiCommunicator,
    call: Call,
}

impl Drop for Entered<'_> {
    fn drop(&mut self) {
        let mut state = self.comm.process.lock();
        if let Some(group) = state.groups.get_mut(&self.comm.id) {
            group.call = None;
        }
    }
}

impl Entered<'_> {
    /// A collective of MPI: headers to all ranks, then what they announce.
    fn exchange(&self, headers: &[Header], start: Start<'_>) -> Result<Blocks, CommError> {
        let comm = self.comm;
        let bytes = Bytes::copy_from_slice(bytemuck::cast_slice(headers));
        let first =
            self.start(|group, mpi| Ok(Some(group.comm.all_to_all(mpi, &bytes, comm.size))))?;
        let received = self.complete(first)?;
        let received = received.view::<Header>()?;
        self.check_agreement(&headers[comm.rank], &received)?;

        // A peer's number of bytes fits this machine, or it could not be received in any case.
        let lengths: Vec<usize> = received
            .iter()
            .map(|header| header.bytes as usize)
            .collect();
        let second = self
            .start(|group, mpi| start(&group.comm, mpi, &lengths))
            .map_err(|error| comm.refuse(error))?;
        let blocks = match second {
            None => Blocks::new(vec![Buffer::default(); comm.size]),
            Some(_) => Blocks::contiguous(self.complete(second)?, &lengths)?,
        };
        comm.with_group(
            || self.call.to_string(),
            |group, _| {
                group.completed += 1;
                Ok(blocks)
            },
        )
    }

    fn start(
        &self,
        start: impl FnOnce(&mut Group, &mut Mpi) -> Result<Option<Operation>, CommError>,
    ) -> Result<Option<Operation>, CommError> {
        self.comm.with_group(|| self.call.to_string(), start)
    }

    /// Waits for an operation; one that never ends is left to MPI.
    fn complete(&self, operation: Option<Operation>) -> Result<Buffer, CommError> {
        let Some(mut operation) = operation else {
            return Ok(Buffer::default());
        };
        self.comm.wait(self.call, |group, mpi| {
            if operation.is_complete(mpi) {
                return Some(Ok(()));
            }
            let error = group.hopeless(self.call)?;
            group.spoiled = true;
            Some(Err(group.fail(error)))
        })?;
        Ok(operation.into_received())
    }

    /// Whether all ranks called the same; they all find the same error if not.
    fn check_agreement(&self, own: &Header, all: &[Header]) -> Result<(), CommError> {
        let differs =
            |header: &&Header| (header.kind, header.agreed) != (all[0].kind, all[0].agreed);
        let error = if let Some(other) = all.iter().position(|header| differs(&header)) {
            CommError::Mismatch {
                rank: Rank::new(0),
                call: name(&all[0]),
                other_rank: Rank::new(other),
                other_call: name(&all[other]),
            }
        } else if let Some(index) = all.iter().map(|h| h.overflow).filter(|&i| i > 0).min() {
            let element = match name_parts(own) {
                Some(Collective::AllReduce { element, .. }) => element,
                _ => ElementType::U64,
            };
            CommError::Overflow {
                index: index as usize - 1,
                element,
            }
        } else {
            return Ok(());
        };
        let fail = |group: &mut Group, _: &mut Mpi| Err(group.fail(error));
        self.comm.with_group(|| self.call.to_string(), fail)
    }
}

impl Communicator for MpiCommunicator {
    fn rank(&self) -> Rank {
        Rank::new(self.rank)
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_to_all_v(&self, send: Buffer, counts: &[usize]) -> Result<Blocks, CommError> {
        if counts.len() != self.size {
            return Err(self.refuse(CommError::NumCounts {
                got: counts.len(),
                size: self.size,
            }));
        }
        send.split(counts).map_err(|error| self.refuse(error))?;
        let entered = self.enter_collective(Collective::AllToAllV)?;
        let header = header(Collective::AllToAllV);
        self.scatter(&entered, header, &send.to_bytes(), counts)
    }

    fn all_gather_v(&self, send: Buffer) -> Result<Blocks, CommError> {
        let entered = self.enter_collective(Collective::AllGatherV)?;
        self.gather(&entered, header(Collective::AllGatherV), &send)
    }

    /// Each rank sums one part of the values and tells the others.
    fn all_reduce(
        &self,
        values: Buffer,
        element: ElementType,
        op: ReduceOp,
    ) -> Result<Buffer, CommError> {
        values
            .check_multiple_of(element.size())
            .map_err(|error| self.refuse(error))?;
        let count = values.len() / element.size();
        let collective = Collective::AllReduce { op, element, count };
        let entered = self.enter_collective(collective)?;
        let header = header(collective);

        let start = |rank: usize| rank * count / self.size;
        let lengths: Vec<usize> = (0..self.size)
            .map(|rank| (start(rank + 1) - start(rank)) * element.size())
            .collect();
        let parts = self.scatter(&entered, header, &values.to_bytes(), &lengths)?;
        let (reduced, overflow) = match reduce_in_rank_order(parts.into_buffers(), element, op) {
            Ok(reduced) => (reduced, 0),
            Err(CommError::Overflow { index, .. }) => {
                (Buffer::default(), (start(self.rank) + index) as u64 + 1)
            }
            Err(other) => return Err(self.refuse(other)),
        };
        let whole = self.gather(&entered, Header { overflow, ..header }, &reduced)?;
        // What MPI gathers lies in one piece.
        Ok(whole.into_whole().unwrap_or_default())
    }

    fn send(&self, to: Rank, tag: u32, message: Buffer) -> Result<(), CommError> {
        check_peer(to, tag, self.size)?;
        check_fits(message.len())?;
        let to = to.index();
        let call = Call::Send { to, tag };
        let send = |group: &mut Group, mpi: &mut Mpi| {
            if let Some(failure) = group.failure() {
                return Err(failure.clone());
            }
            group.send(mpi, to, tag, message);
            Ok(())
        };
        let _entered = self.enter(call)?;
        self.with_group(|| call.to_string(), send)
    }

    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError> {
        check_peer(from, tag, self.size)?;
        let from = from.index();
        let call = Call::Recv { from, tag };
        let _entered = self.enter(call)?;
        let result = self.wait(call, |group, mpi| {
            if let Some(message) = group.take_message(mpi, from, tag) {
                return Some(Ok(message));
            }
            group.no_message(from, tag).map(Err)
        });
        if let Err(error @ CommError::Deadlock { .. }) = &result {
            self.abort(&error.to_string());
        }
        result
    }

    fn try_recv(&self, from: Rank, tag: u32) -> Result<Option<Buffer>, CommError> {
        check_peer(from, tag, self.size)?;
        let from = from.index();
        self.process.lock().progress();
        let call = || Call::Recv { from, tag }.to_string();
        self.with_group(call, |group, mpi| Ok(group.take_message(mpi, from, tag)))
    }

    fn barrier(&self) -> Result<(), CommError> {
        let entered = self.enter_collective(Collective::Barrier)?;
        let headers = vec![header(Collective::Barrier); self.size];
        entered.exchange(&headers, &|_, _, _| Ok(None)).map(drop)
    }

    fn abort(&self, message: &str) -> CommError {
        let abort = |group: &mut Group, mpi: &mut Mpi| Ok(group.abort(mpi, message));
        let call = || "abort".to_owned();
        self.with_group(call, abort).unwrap_or_else(|error| error)
    }

    fn subgroup(&self, ranks: &[Rank]) -> Result<Option<Arc<dyn Communicator>>, CommError> {
        let Some(position) = position_in(ranks, self.rank, self.size)? else {
            return Ok(None);
        };
        let _one_at_a_time = self
            .process
            .making_group
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let members: Vec<usize> = ranks.iter().map(|rank| rank.index()).collect();
        // MPI waits for all members without listening to anybody, so they must be there.
        let call = || "subgroup".to_owned();
        let join = |group: &mut Group, mpi: &mut Mpi| {
            group.join(mpi, &members);
            Ok(members
                .iter()
                .map(|&m| group.world_ranks[m])
                .collect::<Vec<_>>())
        };
        let world_ranks = self.with_group(call, join)?;
        let mut rounds = 0;
        loop {
            self.process.lock().progress();
            if self.with_group(call, |group, _| group.all_joined(&members))? {
                break;
            }
            pause(rounds);
            rounds += 1;
        }
        let id = self.process.lock().make_group(&world_ranks, position);
        let id = id.ok_or(CommError::Unsupported {
            what: "group of these ranks",
        })?;
        Ok(Some(Arc::new(Self {
            process: Arc::clone(&self.process),
            id,
            rank: position,
            size: members.len(),
            is_world: false,
        })))
    }
}

impl Drop for MpiCommunicator {
    /// The others hear of it with the next call of this rank, or when it returns or fails.
    fn drop(&mut self) {
        if self.is_world {
            return;
        }
        if let Some(group) = self.process.lock().groups.get_mut(&self.id) {
            group.dropped = true;
        }
    }
}

fn parts(lengths: &[usize]) -> Result<Parts, CommError> {
    Parts::new(lengths).map_err(too_large)
}

fn check_fits(len: usize) -> Result<(), CommError> {
    parts(&[len]).map(drop)
}

fn too_large(len: usize) -> CommError {
    CommError::TooLarge {
        len,
        max: c_int::MAX as usize,
    }
}

const OPS: [ReduceOp; 2] = [ReduceOp::Sum, ReduceOp::Max];
const ELEMENTS: [ElementType; 3] = [ElementType::F32, ElementType::F64, ElementType::U64];
/// Codes of collectives; those of reductions come behind.
const SIMPLE: [Collective; 3] = [
    Collective::Barrier,
    Collective::AllGatherV,
    Collective::AllToAllV,
];

fn header(collective: Collective) -> Header {
    let code = |index: Option<usize>| index.map_or(u64::MAX, |index| index as u64);
    let (kind, agreed) = match collective {
        Collective::AllReduce { op, element, count } => {
            let op = code(OPS.iter().position(|&o| o == op));
            let element = code(ELEMENTS.iter().position(|&e| e == element));
            let first = SIMPLE.len() as u64;
            (first + op * ELEMENTS.len() as u64 + element, count as u64)
        }
        simple => (code(SIMPLE.iter().position(|&c| c == simple)), 0),
    };
    Header {
        kind,
        agreed,
        overflow: 0,
        bytes: 0,
    }
}

fn name_parts(header: &Header) -> Option<Collective> {
    let kind = usize::try_from(header.kind).ok()?;
    if let Some(&simple) = SIMPLE.get(kind) {
        return Some(simple);
    }
    let reduction = kind - SIMPLE.len();
    Some(Collective::AllReduce {
        op: *OPS.get(reduction / ELEMENTS.len())?,
        element: ELEMENTS[reduction % ELEMENTS.len()],
        count: usize::try_from(header.agreed).ok()?,
    })
}

fn name(header: &Header) -> String {
    name_parts(header).map_or_else(
        || format!("collective {} of another version", header.kind),
        |collective| collective.to_string(),
    )
}
