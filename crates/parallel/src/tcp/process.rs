//! This process: its connections to the others, and its ends of groups.

use std::collections::HashMap;
use std::io::BufReader;
use std::net::{Shutdown, TcpStream};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::{io, mem, thread};

use super::end::{Address, End};
use super::frame::{self, Broken, Frame, Kind};
use crate::notice::Notice;
use crate::standing::{Departure, Gone};

/// The end of the group of all processes, on each of them.
pub(super) const WORLD: u64 = 0;

/// Bytes that are read at once, if they are there.
const READ_AHEAD: usize = 1 << 16;

/// A process of the group.
#[derive(Debug)]
pub(super) struct Process {
    /// To each other process; written to by one thread at a time, a frame at a time.
    links: Vec<Option<Mutex<TcpStream>>>,
    state: Mutex<State>,
    /// Something has come.
    changed: Condvar,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) ends: HashMap<u64, End>,
    next_end: u64,
    /// Ends that were dropped, of which the others have not heard.
    dropped: Vec<End>,
    /// How each process went that is gone.
    pub(super) departed: Vec<Option<Departure>>,
}

impl State {
    /// A new end of a group, of which the processes that are gone are gone.
    pub(super) fn add_end(&mut self, processes: Vec<usize>, rank: usize) -> u64 {
        let mut end = End::new(processes, rank);
        for (process, how) in self.departed.iter().enumerate() {
            if let Some(how) = how {
                end.lose(process, how);
            }
        }
        let id = self.next_end;
        self.next_end += 1;
        self.ends.insert(id, end);
        id
    }

    pub(super) fn drop_end(&mut self, id: u64) {
        let end = self.ends.remove(&id);
        self.dropped.extend(end);
    }
}

impl Process {
    /// A process with these connections, and its end of the group of all.
    pub(super) fn start(
        rank: usize,
        connections: Vec<Option<TcpStream>>,
    ) -> io::Result<Arc<Process>> {
        let size = connections.len();
        let mut state = State {
            ends: HashMap::new(),
            next_end: WORLD,
            dropped: Vec::new(),
            departed: vec![None; size],
        };
        let world = state.add_end((0..size).collect(), rank);
        if let Some(end) = state.ends.get_mut(&world) {
            (0..size).for_each(|rank| end.set_joined(rank, world));
        }
        let mut readers = Vec::new();
        let mut links = Vec::with_capacity(size);
        for (peer, stream) in connections.into_iter().enumerate() {
            if let Some(stream) = &stream {
                readers.push((peer, stream.try_clone()?));
            }
            links.push(stream.map(Mutex::new));
        }
        let process = Arc::new(Self {
            links,
            state: Mutex::new(state),
            changed: Condvar::new(),
        });
        for (peer, stream) in readers {
            let process = process.clone();
            thread::Builder::new()
                .name(format!("from process {peer}"))
                .spawn(move || process.listen(peer, stream))?;
        }
        Ok(process)
    }

    /// Poison says nothing: no code panics in here.
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until something has come.
    pub(super) fn wait<'a>(&self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        self.changed
            .wait(state)
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes those that wait.
    pub(super) fn wake(&self) {
        self.changed.notify_all();
    }

    /// Sends a frame. One that cannot be sent concerns a process that is gone, of which the thread
    /// that reads from it tells. Never called with the state locked: the other process may need what
    /// this one reads meanwhile.
    pub(super) fn post(&self, to: Address, kind: Kind, parts: [&[u8]; 2]) {
        let Some(Some(link)) = self.links.get(to.process) else {
            return;
        };
        let mut stream = link.lock().unwrap_or_else(PoisonError::into_inner);
        if frame::write(&mut *stream, kind, to.end, parts).is_err() {
            // Half a frame may be out.
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    pub(super) fn post_notice(&self, to: &[(usize, Address)], notice: &Notice) {
        let bytes = notice.encode();
        for &(_, address) in to {
            self.post(address, Kind::Notice, [&bytes, &[]]);
        }
    }

    /// Tells the others of ends that were dropped.
    pub(super) fn tell_of_dropped(&self) {
        let dropped = mem::take(&mut self.lock().dropped);
        for end in dropped {
            for notice in end.standing.last_words(Departure::Returned) {
                self.post_notice(&end.others(), &notice);
            }
        }
    }

    /// Tells all other processes that this one ends, and why if it fails.
    pub(super) fn post_end(&self, how: Departure) {
        let notice = Notice::returned(&Gone { completed: 0, how });
        let bytes = notice.encode();
        for process in 0..self.links.len() {
            let to = Address {
                process,
                end: WORLD,
            };
            self.post(to, Kind::End, [&bytes, &[]]);
        }
    }

    /// Ends all connections.
    pub(super) fn close(&self) {
        for link in self.links.iter().flatten() {
            let stream = link.lock().unwrap_or_else(PoisonError::into_inner);
            stream.shutdown(Shutdown::Both).ok();
        }
    }

    /// Takes in what a process sends, to its end.
    fn listen(&self, peer: usize, stream: TcpStream) {
        let mut stream = BufReader::with_capacity(READ_AHEAD, stream);
        loop {
            let problem = match frame::read(&mut stream) {
                Ok(frame) => self.take_in(peer, frame).err(),
                Err(Broken::Closed) => return self.depart(peer, &Departure::Lost),
                Err(Broken::Damaged(what)) => Some(what),
            };
            if let Some(what) = problem {
                return self.give_up(peer, &what);
            }
        }
    }

    fn take_in(&self, peer: usize, frame: Frame) -> Result<(), String> {
        let Frame { kind, end, payload } = frame;
        if kind == Kind::End {
            let Some(Notice::Returned { failure, .. }) = Notice::decode(&payload.to_bytes()) else {
                return Err("a last word".to_owned());
            };
            self.depart(
                peer,
                &failure.map_or(Departure::Returned, Departure::Failed),
            );
            return Ok(());
        }
        let mut state = self.lock();
        // An end that has been dropped has no use for it.
        if let Some(end) = state.ends.get_mut(&end) {
            end.take_in(peer, kind, payload)?;
        }
        drop(state);
        self.wake();
        Ok(())
    }

    /// A process is gone. The first word counts.
    fn depart(&self, peer: usize, how: &Departure) {
        let mut state = self.lock();
        if state.departed[peer].is_none() {
            state.departed[peer] = Some(how.clone());
            for end in state.ends.values_mut() {
                end.lose(peer, how);
            }
        }
        drop(state);
        self.wake();
    }

    /// Something that cannot be trusted has come. Who is to blame is not known, so this process
    /// leaves: for the others it is lost, as if it had been killed, and they agree about that.
    fn give_up(&self, peer: usize, what: &str) {
        let message = format!("{what} from process {peer} is damaged");
        let mut state = self.lock();
        for end in state.ends.values_mut() {
            let rank = end.rank;
            end.standing.hear_failure(rank, 0, &message);
        }
        drop(state);
        // The threads that read from the others find their connections closed.
        self.close();
        self.depart(peer, &Departure::Lost);
    }
}
