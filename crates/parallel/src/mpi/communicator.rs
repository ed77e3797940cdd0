use std::ffi::c_int;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use moekit_routing::Rank;

use super::state::{Group, Process, State};
use super::sys::{Comm, Mpi, Operation, Parts};
use crate::agreement::{Header, check_agreement};
use crate::call::Call;
use crate::collectives::{self, Transport};
use crate::communicator::{check_peer, position_in};
use crate::pause::pause;
use crate::standing::Standing;
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

    /// A collective of MPI: headers to all ranks, then what they announce.
    fn exchange(
        &self,
        call: Call,
        headers: &[Header],
        start: Start<'_>,
    ) -> Result<Blocks, CommError> {
        let bytes = Bytes::copy_from_slice(bytemuck::cast_slice(headers));
        let first = self.with_group(
            || call.to_string(),
            |group, mpi| Ok(Some(group.comm.all_to_all(mpi, &bytes, self.size))),
        )?;
        let received = self.complete(call, first)?;
        let received = received.view::<Header>()?;
        check_agreement(&received).or_else(|error| {
            let fail = |group: &mut Group, _: &mut Mpi| {
                // What all have entered ends for all.
                group.standing.completed += 1;
                Err(group.standing.fail(error))
            };
            self.with_group(|| call.to_string(), fail)
        })?;

        // A peer's number of bytes fits this machine, or it could not be received in any case.
        let lengths: Vec<usize> = received
            .iter()
            .map(|header| header.bytes as usize)
            .collect();
        let second = self
            .with_group(
                || call.to_string(),
                |group, mpi| start(&group.comm, mpi, &lengths),
            )
            .map_err(|error| self.refuse(error))?;
        let blocks = match second {
            None => Blocks::new(vec![Buffer::default(); self.size]),
            Some(_) => Blocks::contiguous(self.complete(call, second)?, &lengths)?,
        };
        self.with_group(
            || call.to_string(),
            |group, _| {
                group.standing.completed += 1;
                Ok(blocks)
            },
        )
    }

    /// Waits for an operation; one that never ends is left to MPI.
    fn complete(&self, call: Call, operation: Option<Operation>) -> Result<Buffer, CommError> {
        let Some(mut operation) = operation else {
            return Ok(Buffer::default());
        };
        self.wait(call, |group, mpi| {
            if operation.is_complete(mpi) {
                return Some(Ok(()));
            }
            let error = group.standing.hopeless(call)?;
            group.spoiled = true;
            Some(Err(group.standing.fail(error)))
        })?;
        Ok(operation.into_received())
    }
}

impl Transport for MpiCommunicator {
    fn with_standing<T>(
        &self,
        call: &dyn Fn() -> String,
        act: impl FnOnce(&mut Standing) -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        self.with_group(call, |group, _| act(&mut group.standing))
    }

    fn scatter(
        &self,
        call: Call,
        header: Header,
        send: &Buffer,
        counts: &[usize],
    ) -> Result<Blocks, CommError> {
        let to = parts(counts).map_err(|error| self.refuse(error))?;
        let headers: Vec<Header> = counts
            .iter()
            .map(|&count| header.with_bytes(count))
            .collect();
        let send = send.to_bytes();
        self.exchange(call, &headers, &|comm, mpi, lengths| {
            let from = parts(lengths)?;
            Ok(Some(comm.all_to_all_v(mpi, send.clone(), &to, &from)))
        })
    }

    fn gather(&self, call: Call, header: Header, send: &Buffer) -> Result<Blocks, CommError> {
        let headers = vec![header.with_bytes(send.len()); self.size];
        let send = send.to_bytes();
        check_fits(send.len()).map_err(|error| self.refuse(error))?;
        self.exchange(call, &headers, &|comm, mpi, lengths| {
            if lengths.iter().all(|&length| length == 0) {
                return Ok(None);
            }
            let from = parts(lengths)?;
            Ok(Some(comm.all_gather_v(mpi, send.clone(), &from)))
        })
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
        collectives::all_to_all_v(self, &send, counts)
    }

    fn all_gather_v(&self, send: Buffer) -> Result<Blocks, CommError> {
        collectives::all_gather_v(self, &send)
    }

    fn all_reduce(
        &self,
        values: Buffer,
        element: ElementType,
        op: ReduceOp,
    ) -> Result<Buffer, CommError> {
        collectives::all_reduce(self, &values, element, op)
    }

    fn send(&self, to: Rank, tag: u32, message: Buffer) -> Result<(), CommError> {
        check_peer(to, tag, self.size)?;
        check_fits(message.len())?;
        let to = to.index();
        let call = Call::Send { to, tag };
        let send = |group: &mut Group, mpi: &mut Mpi| {
            if let Some(failure) = group.standing.failure() {
                return Err(failure.clone());
            }
            group.send(mpi, to, tag, message);
            Ok(())
        };
        let _entered = collectives::enter(self, call)?;
        self.with_group(|| call.to_string(), send)
    }

    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError> {
        check_peer(from, tag, self.size)?;
        collectives::recv(self, from, tag, |call| {
            let from = from.index();
            self.wait(call, |group, mpi| {
                if let Some(message) = group.take_message(mpi, from, tag) {
                    return Some(Ok(message));
                }
                group.no_message(from, tag).map(Err)
            })
        })
    }

    fn try_recv(&self, from: Rank, tag: u32) -> Result<Option<Buffer>, CommError> {
        check_peer(from, tag, self.size)?;
        let from = from.index();
        self.process.lock().progress();
        let call = || Call::Recv { from, tag }.to_string();
        self.with_group(call, |group, mpi| Ok(group.take_message(mpi, from, tag)))
    }

    fn is_gone(&self, rank: Rank) -> bool {
        let gone = |group: &mut Group, _: &mut Mpi| Ok(group.standing.gone(rank.index()).is_some());
        self.with_group(String::new, gone).unwrap_or(false)
    }

    fn barrier(&self) -> Result<(), CommError> {
        collectives::barrier(self)
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
