//! How the processes of a group find each other: all tell the one that has started them where they
//! listen, it tells all of them, and each connects to those of lower rank.
//!
//! Only the loopback interface is listened on, and only who knows the key of the group is let in.

use std::env;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use bytemuck::{Pod, Zeroable};

use crate::pause::pause;

/// How long processes wait for each other at the start; far beyond what it takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a connection may take to say whose it is.
const HELLO: Duration = Duration::from_secs(2);
/// The version of what processes say to each other.
const MAGIC: u64 = u64::from_le_bytes(*b"moekit\0\x01");
/// The variable of the environment that says to a process which one it is: the port of the one that
/// has started it, its rank, the number of ranks and the key.
pub(super) const VARIABLE: &str = "MOEKIT_TCP_RANK";

/// What only the processes of one group know.
type Key = [u64; 2];

/// What a process is told when it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seat {
    port: u16,
    pub(super) rank: usize,
    pub(super) size: usize,
    key: Key,
}

/// The first word on every connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
struct Hello {
    magic: u64,
    key: Key,
    rank: u32,
    /// Where the process listens.
    port: u32,
}

impl Seat {
    /// The seat of this process, if it was started for one.
    pub(super) fn from_environment() -> Option<Self> {
        Self::parse(&env::var(VARIABLE).ok()?)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split(':');
        let mut next = |radix| u64::from_str_radix(words.next()?, radix).ok();
        let seat = Self {
            port: next(10)?.try_into().ok()?,
            rank: next(10)?.try_into().ok()?,
            size: next(10)?.try_into().ok()?,
            key: [next(16)?, next(16)?],
        };
        (seat.rank < seat.size && words.next().is_none()).then_some(seat)
    }

    /// What [`Seat::from_environment`] reads.
    pub(super) fn to_text(self) -> String {
        let Self {
            port,
            rank,
            size,
            key: [first, second],
        } = self;
        format!("{port}:{rank}:{size}:{first:x}:{second:x}")
    }

    /// A connection to each other process. Waits until all have come.
    pub(super) fn take(&self) -> io::Result<Vec<Option<TcpStream>>> {
        let listener = listen()?;
        let hello = Hello {
            magic: MAGIC,
            key: self.key,
            rank: self.rank as u32,
            port: listener.local_addr()?.port().into(),
        };
        let mut starter = connect(self.port, &hello)?;
        let mut ports = vec![0_u16; self.size];
        starter.set_read_timeout(Some(PATIENCE))?;
        starter.read_exact(bytemuck::cast_slice_mut(&mut ports))?;
        let mut streams: Vec<Option<TcpStream>> = Vec::with_capacity(self.size);
        for &port in &ports[..self.rank] {
            streams.push(Some(connect(port, &hello)?));
        }
        streams.resize_with(self.size, || None);
        accept(
            &listener,
            self.key,
            &mut streams[self.rank + 1..],
            |hello, stream| (hello.rank as usize - self.rank - 1, stream),
        )?;
        for stream in streams.iter().flatten() {
            stream.set_nodelay(true)?;
        }
        Ok(streams)
    }
}

/// The one that has started the processes of a group.
#[derive(Debug)]
pub(super) struct Starter {
    listener: TcpListener,
    key: Key,
    size: usize,
}

impl Starter {
    pub(super) fn new(size: usize) -> io::Result<Self> {
        // The keys of the standard library's hashes are random numbers of the system.
        let random = || RandomState::new().build_hasher().finish();
        Ok(Self {
            listener: listen()?,
            key: [random(), random()],
            size,
        })
    }

    /// What to tell the process of a rank.
    pub(super) fn seat(&self, rank: usize) -> io::Result<Seat> {
        Ok(Seat {
            port: self.listener.local_addr()?.port(),
            rank,
            size: self.size,
            key: self.key,
        })
    }

    /// Waits for all processes and tells each where the others are.
    pub(super) fn serve(&self) -> io::Result<()> {
        let mut processes: Vec<Option<(u16, TcpStream)>> = Vec::new();
        processes.resize_with(self.size, || None);
        accept(&self.listener, self.key, &mut processes, |hello, stream| {
            (hello.rank as usize, (hello.port as u16, stream))
        })?;
        let ports = processes.iter().flatten().map(|(port, _)| *port);
        let ports: Vec<u16> = ports.collect();
        for (_, stream) in processes.iter_mut().flatten() {
            // One that has ended meanwhile is missed by the others.
            stream.write_all(bytemuck::cast_slice(&ports)).ok();
        }
        Ok(())
    }
}

fn listen() -> io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}

fn connect(port: u16, hello: &Hello) -> io::Result<TcpStream> {
    let address = SocketAddrV4::new(Ipv4Addr::LOCALHOST, port);
    let mut stream = TcpStream::connect_timeout(&address.into(), PATIENCE)?;
    stream.write_all(bytemuck::bytes_of(hello))?;
    Ok(stream)
}

/// Fills all seats with who comes; whoever does not belong here is sent away.
fn accept<T>(
    listener: &TcpListener,
    key: Key,
    seats: &mut [Option<T>],
    mut seat_of: impl FnMut(&Hello, TcpStream) -> (usize, T),
) -> io::Result<()> {
    let start = Instant::now();
    listener.set_nonblocking(true)?;
    let mut rounds = 0;
    while seats.iter().any(Option::is_none) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Ok((hello, stream)) = introduced(stream, key) {
                    let (index, taken) = seat_of(&hello, stream);
                    if let Some(seat @ None) = seats.get_mut(index) {
                        *seat = Some(taken);
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if start.elapsed() > PATIENCE {
                    let came = seats.iter().flatten().count();
                    let message = format!(
                        "{came} of the {} other processes have come in {} s",
                        seats.len(),
                        PATIENCE.as_secs()
                    );
                    return Err(io::Error::new(io::ErrorKind::TimedOut, message));
                }
                pause(rounds);
                rounds += 1;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Who a connection is of, if it is of this group.
fn introduced(mut stream: TcpStream, key: Key) -> io::Result<(Hello, TcpStream)> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(HELLO))?;
    let mut hello = Hello::zeroed();
    stream.read_exact(bytemuck::bytes_of_mut(&mut hello))?;
    if (hello.magic, hello.key) != (MAGIC, key) {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    stream.set_read_timeout(None)?;
    Ok((hello, stream))
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::watchdog::watched;

    #[test]
    fn a_seat_comes_back() {
        let seat = Seat {
            port: 4711,
            rank: 2,
            size: 3,
            key: [u64::MAX, 0],
        };
        assert_eq!(Seat::parse(&seat.to_text()), Some(seat));
        for text in ["", "1:2:3", "1:3:3:0:0", "1:0:1:0:0:0", "70000:0:1:0:0"] {
            assert_eq!(Seat::parse(text), None, "{text}");
        }
    }

    /// Strangers come first, with another key, with nothing to say or with half a word.
    #[test]
    fn all_find_each_other_and_strangers_are_sent_away() {
        watched(|| {
            let starter = Starter::new(3).unwrap();
            let seats: Vec<Seat> = (0..3).map(|rank| starter.seat(rank).unwrap()).collect();
            let hello = Hello {
                magic: MAGIC,
                key: [0, 0],
                rank: 1,
                port: 9,
            };
            let mut stranger = connect(seats[0].port, &hello).unwrap();
            let silent = TcpStream::connect((Ipv4Addr::LOCALHOST, seats[0].port)).unwrap();
            drop(silent);
            let threads: Vec<_> = seats
                .into_iter()
                .map(|seat| {
                    thread::spawn(move || {
                        let mut streams = seat.take().unwrap();
                        for stream in streams.iter_mut().flatten() {
                            stream.write_all(&[seat.rank as u8]).unwrap();
                        }
                        streams
                            .iter_mut()
                            .map(|stream| {
                                let mut byte = [9];
                                let stream = stream.as_mut()?;
                                stream.read_exact(&mut byte).unwrap();
                                Some(byte[0])
                            })
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            starter.serve().unwrap();
            let heard: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
            for (rank, heard) in heard.into_iter().enumerate() {
                let all = (0..3).map(|r| (r != rank).then_some(r as u8));
                assert!(heard.into_iter().eq(all), "rank {rank}");
            }
            assert_eq!(stranger.read(&mut [0]).unwrap_or(0), 0, "sent away");
        });
    }
}
