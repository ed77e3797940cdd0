use std::sync::Arc;

use moekit_routing::Rank;

use super::end::End;
use super::frame::Kind;
use super::process::{Process, WORLD};
use crate::agreement::{Header, check_agreement};
use crate::call::Call;
use crate::collectives::{self, Transport};
use crate::communicator::{check_peer, position_in};
use crate::notice::Notice;
use crate::standing::Standing;
use crate::{Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp};

/// A rank that is a process, made by [`TcpGroup::run`](crate::TcpGroup::run).
///
/// A process that is killed is gone for all others: a collective that needs it is an error
/// ([`CommError::PeerFailed`]) and ends its group, as with a rank that returns; messages between
/// others go on, and so do groups without it. A process that is only stopped, by a debugger say, is
/// waited for.
///
/// All that is sent carries a checksum. A process that gets something damaged leaves, with an error
/// that says so from each of its calls; to the others it is lost.
#[derive(Debug)]
pub struct TcpCommunicator {
    process: Arc<Process>,
    end: u64,
    rank: usize,
    size: usize,
}

impl TcpCommunicator {
    /// The end of the group of all processes.
    pub(super) fn world(process: Arc<Process>, rank: usize, size: usize) -> Self {
        Self {
            process,
            end: WORLD,
            rank,
            size,
        }
    }

    /// Does `act` with the end, unless this rank has returned.
    fn with_end<T>(
        &self,
        call: &dyn Fn() -> String,
        act: impl FnOnce(&mut End) -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        self.process.tell_of_dropped();
        match self.process.lock().ends.get_mut(&self.end) {
            Some(end) => act(end),
            None => Err(self.returned(call())),
        }
    }

    fn returned(&self, call: String) -> CommError {
        CommError::PeerReturned {
            rank: self.rank(),
            call,
        }
    }

    /// Waits until `ready` has an answer.
    fn wait<T>(
        &self,
        call: &dyn Fn() -> String,
        mut ready: impl FnMut(&mut End) -> Option<Result<T, CommError>>,
    ) -> Result<T, CommError> {
        let mut state = self.process.lock();
        loop {
            let Some(end) = state.ends.get_mut(&self.end) else {
                return Err(self.returned(call()));
            };
            if let Some(answer) = ready(end) {
                return answer;
            }
            state = self.process.wait(state);
        }
    }

    /// Sends each rank its header and part, and receives those of all.
    fn exchange(
        &self,
        call: Call,
        header: impl Fn(usize) -> Header,
        parts: &[Buffer],
    ) -> Result<Blocks, CommError> {
        let name = || call.to_string();
        let others = self.with_end(&name, |end| {
            let (header, part) = (header(parts[self.rank].len()), parts[self.rank].clone());
            end.put_part(self.rank, header, part);
            Ok(end.others())
        })?;
        for (rank, address) in others {
            let header = header(parts[rank].len());
            let (header, part) = (bytemuck::bytes_of(&header), parts[rank].to_bytes());
            self.process.post(address, Kind::Part, [header, &part]);
        }
        let (headers, parts) = self.wait(&name, |end| {
            if let Some(all) = end.take_parts() {
                return Some(Ok(all));
            }
            let error = end.standing.hopeless(call)?;
            Some(Err(end.standing.fail(error)))
        })?;
        self.with_end(&name, |end| {
            check_agreement(&headers).map_err(|error| end.standing.fail(error))?;
            Ok(Blocks::new(parts))
        })
    }

    /// Tells the other members that this one comes to a subgroup, and waits for them.
    fn join(&self, members: &[usize], own: u64) -> Result<Vec<u64>, CommError> {
        let call = || "subgroup".to_owned();
        let mut to = self.with_end(&call, |end| Ok(end.others()))?;
        to.retain(|(rank, _)| members.contains(rank));
        let notice = Notice::Join {
            members: members.to_vec(),
            end: own,
        };
        self.process.post_notice(&to, &notice);
        self.wait(&call, |end| end.take_joins(members))
    }
}

impl Transport for TcpCommunicator {
    fn with_standing<T>(
        &self,
        call: &dyn Fn() -> String,
        act: impl FnOnce(&mut Standing) -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        self.with_end(call, |end| act(&mut end.standing))
    }

    fn scatter(
        &self,
        call: Call,
        header: Header,
        send: &Buffer,
        counts: &[usize],
    ) -> Result<Blocks, CommError> {
        let parts = send.split(counts).map_err(|error| self.refuse(error))?;
        self.exchange(call, |len| header.with_bytes(len), &parts)
    }

    fn gather(&self, call: Call, header: Header, send: &Buffer) -> Result<Blocks, CommError> {
        let parts = vec![send.clone(); self.size];
        self.exchange(call, |len| header.with_bytes(len), &parts)
    }
}

impl Communicator for TcpCommunicator {
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
        let to = to.index();
        let call = Call::Send { to, tag };
        let _entered = collectives::enter(self, call)?;
        let address = self.with_end(&|| call.to_string(), |end| {
            if let Some(failure) = end.standing.failure() {
                return Err(failure.clone());
            }
            if to == self.rank {
                end.put_message(to, tag, message.clone());
                return Ok(None);
            }
            Ok(end.address(to))
        })?;
        if let Some(address) = address {
            let kind = Kind::Message(tag);
            self.process.post(address, kind, [&message.to_bytes(), &[]]);
        }
        Ok(())
    }

    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError> {
        check_peer(from, tag, self.size)?;
        collectives::recv(self, from, tag, |call| {
            let from = from.index();
            self.wait(&|| call.to_string(), |end| {
                if let Some(message) = end.take_message(from, tag) {
                    return Some(Ok(message));
                }
                end.standing.no_message(from, tag).map(Err)
            })
        })
    }

    fn try_recv(&self, from: Rank, tag: u32) -> Result<Option<Buffer>, CommError> {
        check_peer(from, tag, self.size)?;
        let from = from.index();
        let call = || Call::Recv { from, tag }.to_string();
        self.with_end(&call, |end| Ok(end.take_message(from, tag)))
    }

    fn is_gone(&self, rank: Rank) -> bool {
        let gone = |standing: &mut Standing| Ok(standing.gone(rank.index()).is_some());
        self.with_standing(&String::new, gone).unwrap_or(false)
    }

    fn barrier(&self) -> Result<(), CommError> {
        collectives::barrier(self)
    }

    fn abort(&self, message: &str) -> CommError {
        let call = || "abort".to_owned();
        let aborted = self.with_end(&call, |end| Ok((end.abort(message), end.others())));
        match aborted {
            Ok(((error, notice), others)) => {
                if let Some(notice) = notice {
                    self.process.post_notice(&others, &notice);
                }
                self.process.wake();
                error
            }
            Err(error) => error,
        }
    }

    fn subgroup(&self, ranks: &[Rank]) -> Result<Option<Arc<dyn Communicator>>, CommError> {
        let Some(position) = position_in(ranks, self.rank, self.size)? else {
            return Ok(None);
        };
        let members: Vec<usize> = ranks.iter().map(|rank| rank.index()).collect();
        let processes = self.with_end(&|| "subgroup".to_owned(), |end| {
            let process = |&member: &usize| end.processes()[member];
            Ok(members.iter().map(process).collect::<Vec<_>>())
        })?;
        // The end is there before the others hear of it, as they may send at once.
        let own = self.process.lock().add_end(processes, position);
        let group = Self {
            process: self.process.clone(),
            end: own,
            rank: position,
            size: members.len(),
        };
        let ends = self.join(&members, own)?;
        group.with_end(&|| "subgroup".to_owned(), |end| {
            let others = (0..members.len()).filter(|&rank| rank != position);
            others
                .zip(ends)
                .for_each(|(rank, id)| end.set_joined(rank, id));
            Ok(())
        })?;
        Ok(Some(Arc::new(group)))
    }
}

impl Drop for TcpCommunicator {
    /// The others hear of it with the next call of this rank, or when it returns or fails. The end of
    /// all processes stays until this one ends.
    fn drop(&mut self) {
        if self.end != WORLD {
            self.process.lock().drop_end(self.end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream};

    use super::*;
    use crate::watchdog::watched;

    #[test]
    fn who_gets_something_damaged_leaves_and_is_lost_to_the_others() {
        watched(|| {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            let mut other = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            let process = Process::start(0, vec![None, Some(stream)]).unwrap();
            let comm = TcpCommunicator::world(process, 0, 2);
            other.write_all(&[7; 200]).unwrap();
            let damaged = CommError::PeerFailed {
                rank: Rank::new(0),
                message: "the head of a message from process 1 is damaged".to_owned(),
            };
            assert_eq!(comm.barrier().unwrap_err(), damaged);
            assert_eq!(comm.recv(Rank::new(1), 0).unwrap_err(), damaged);
            // What comes over the connection has an end.
            other.read_to_end(&mut Vec::new()).ok();
            assert!(comm.subgroup(&[Rank::new(0), Rank::new(1)]).is_err());
        });
    }
}
