//! What travels over a connection: frames, each with checksums of its header and of all behind it.

use std::io::{self, IoSlice, Read, Write};

use bytemuck::{Pod, Zeroable};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::Buffer;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A message with a tag.
    Message(u32),
    /// A part of a collective, behind the header that says of which.
    Part,
    /// A notice to the ranks of a group.
    Notice,
    /// The process ends; with its message, if it has failed.
    End,
}

impl Kind {
    fn code(self) -> [u32; 2] {
        match self {
            Self::Message(tag) => [0, tag],
            Self::Part => [1, 0],
            Self::Notice => [2, 0],
            Self::End => [3, 0],
        }
    }

    fn of(code: [u32; 2]) -> Option<Self> {
        Some(match code {
            [0, tag] => Self::Message(tag),
            [1, 0] => Self::Part,
            [2, 0] => Self::Notice,
            [3, 0] => Self::End,
            _ => return None,
        })
    }
}

/// The first bytes of a frame. All processes run on one machine, so its byte order is that of all.
#[derive(Debug, Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Head {
    kind: [u32; 2],
    /// The end of the group that the frame is for, as its receiver calls it.
    end: u64,
    len: u64,
    checksum: u64,
    /// Of the fields above.
    head_checksum: u64,
}

impl Head {
    fn own_checksum(&self) -> u64 {
        xxh3_64(&bytemuck::bytes_of(self)[..size_of::<Self>() - size_of::<u64>()])
    }
}

/// A frame that has arrived.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) kind: Kind,
    pub(super) end: u64,
    pub(super) payload: Buffer,
}

/// Why no other frame comes.
#[derive(Debug)]
pub(super) enum Broken {
    /// The connection has ended, or does not work.
    Closed,
    /// What came is not what was sent.
    Damaged(String),
}

impl From<io::Error> for Broken {
    fn from(_: io::Error) -> Self {
        Self::Closed
    }
}

/// Writes a frame whose payload are these parts, one behind the other.
pub(super) fn write(
    to: &mut impl Write,
    kind: Kind,
    end: u64,
    parts: [&[u8]; 2],
) -> io::Result<()> {
    let mut checksum = Xxh3::new();
    parts.iter().for_each(|part| checksum.update(part));
    let mut head = Head {
        kind: kind.code(),
        end,
        len: parts.iter().map(|part| part.len() as u64).sum(),
        checksum: checksum.digest(),
        head_checksum: 0,
    };
    head.head_checksum = head.own_checksum();
    let mut slices = [bytemuck::bytes_of(&head), parts[0], parts[1]].map(IoSlice::new);
    let mut rest = &mut slices[..];
    // Empty parts are nothing to wait for.
    IoSlice::advance_slices(&mut rest, 0);
    while !rest.is_empty() {
        match to.write_vectored(rest) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => IoSlice::advance_slices(&mut rest, written),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for the next frame.
pub(super) fn read(from: &mut impl Read) -> Result<Frame, Broken> {
    let mut head = Head::zeroed();
    from.read_exact(bytemuck::bytes_of_mut(&mut head))?;
    if head.own_checksum() != head.head_checksum {
        return Err(Broken::Damaged("the head of a message".to_owned()));
    }
    let (Some(kind), Ok(len)) = (Kind::of(head.kind), usize::try_from(head.len)) else {
        return Err(Broken::Damaged("a message of another version".to_owned()));
    };
    let words = len.div_ceil(size_of::<u64>());
    // In words, so that what is received is aligned for any value.
    let mut payload: Vec<u64> = Vec::new();
    if payload.try_reserve_exact(words).is_err() {
        let problem = format!("there is no memory for a message of {len} bytes");
        return Err(Broken::Damaged(problem));
    }
    payload.resize(words, 0);
    let bytes = &mut bytemuck::cast_slice_mut(&mut payload)[..len];
    from.read_exact(bytes)?;
    if xxh3_64(bytes) != head.checksum {
        return Err(Broken::Damaged(format!("a message of {len} bytes")));
    }
    Ok(Frame {
        kind,
        end: head.end,
        payload: Buffer::from_vec(payload).truncated(len),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(kind: Kind, end: u64, parts: [&[u8]; 2]) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, kind, end, parts).unwrap();
        bytes
    }

    #[test]
    fn frames_come_back() {
        let kinds = [Kind::Message(7), Kind::Part, Kind::Notice, Kind::End];
        for (kind, parts) in kinds.into_iter().zip([
            [&b"0123456789"[..], &b"abc"[..]],
            [b"", b"x"],
            [b"notice", b""],
            [b"", b""],
        ]) {
            let frame = read(&mut &written(kind, 9, parts)[..]).unwrap();
            assert_eq!((frame.kind, frame.end), (kind, 9));
            assert_eq!(frame.payload.to_bytes(), parts.concat());
        }
    }

    /// A writer that takes a few bytes at a time.
    struct Slow(Vec<u8>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(3);
            self.0.extend(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_frame_may_be_written_bit_by_bit() {
        let mut slow = Slow(Vec::new());
        write(&mut slow, Kind::Part, 1, [b"header", b"values"]).unwrap();
        assert_eq!(slow.0, written(Kind::Part, 1, [b"header", b"values"]));
    }

    #[test]
    fn every_changed_byte_and_every_cut_is_found() {
        let whole = written(Kind::Message(3), 5, [b"expert", b" 7"]);
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x10;
            assert!(matches!(read(&mut &changed[..]), Err(Broken::Damaged(_))));
            assert!(matches!(read(&mut &whole[..at]), Err(Broken::Closed)));
        }
    }
}
