//! What one rank tells another between two steps: control, load, and pieces of experts.

use bytes::Bytes;
use moekit_placement::Placement;
use moekit_routing::{LogicalExpert, Rank};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::LiveError;
use crate::expert::ExpertId;

const MAGIC: u32 = 0x314c_4f4d;
/// Magic, length of the control, number of load values, checksum of both.
const FIXED: usize = 4 + 4 + 8 + 8;
/// Layer, expert, offset, length of the whole expert, length of the piece.
const PIECE: usize = 5 * 8;

/// What every rank says to all others in every step: from it all ranks decide alike.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Control {
    /// Forward passes that this rank has done.
    pub(crate) step: u64,
    /// A number of the committed tables: the same on all ranks.
    pub(crate) digest: u64,
    /// How far this rank is with the migration under way.
    pub(crate) report: Report,
    /// Whether this rank wants to leave.
    pub(crate) leaving: bool,
    /// Of rank 0 alone.
    pub(crate) command: Option<Command>,
}

/// How far a rank is with the migration under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// There is none.
    Idle,
    /// It does not know yet what it is to send.
    Planning,
    /// It has a plan.
    Moving {
        /// Whether all that was due has been sent with this message.
        sent: bool,
        /// Stages, numbered as in the plan, of which all has arrived, is verified and ready to be
        /// swapped in.
        ready: Vec<usize>,
    },
    /// Something is wrong.
    Fault(String),
}

/// What rank 0 has decided.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Command {
    /// A planner has started.
    Planning,
    /// These placements come next, one per layer.
    Adopt {
        layers: Vec<Placement>,
        /// Layers, those first that are to change first.
        order: Vec<usize>,
        gain: f64,
    },
    /// The plan does not pay.
    Skip { reason: String },
    /// There is no plan.
    Fail { reason: String },
    /// What nobody holds is to be read from the checkpoint again.
    Restore,
    /// Another group comes next: members wait to be let in, or the leaving ones hold nothing more.
    Regroup,
}

/// A piece of an expert.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) id: ExpertId,
    pub(crate) offset: usize,
    /// Bytes of the whole expert.
    pub(crate) total: usize,
    pub(crate) bytes: Bytes,
}

/// A message.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Frame {
    pub(crate) control: Control,
    /// Token counts, of messages to rank 0 when they are due.
    pub(crate) load: Vec<u64>,
    /// `Err` if they were damaged: that ends a migration, but not the group.
    pub(crate) pieces: Result<Vec<Piece>, String>,
}

/// The control as bytes, to be made once for all ranks.
pub(crate) fn encode_control(control: &Control) -> Result<Vec<u8>, LiveError> {
    serde_json::to_vec(control)
        .map_err(|e| LiveError::Config(format!("the step's message cannot be written: {e}")))
}

/// Appends a message.
pub(crate) fn put<'a>(
    out: &mut Vec<u8>,
    control: &[u8],
    load: &[u64],
    pieces: impl Iterator<Item = &'a Piece>,
) {
    let start = out.len();
    out.extend_from_slice(&MAGIC.to_le_bytes());
    out.extend_from_slice(&(control.len() as u32).to_le_bytes());
    out.extend_from_slice(&(load.len() as u64).to_le_bytes());
    out.extend_from_slice(&[0; 8]);
    out.extend_from_slice(control);
    load.iter()
        .for_each(|count| out.extend_from_slice(&count.to_le_bytes()));
    let checksum = checksum(&out[start..]);
    out[start + FIXED - 8..start + FIXED].copy_from_slice(&checksum.to_le_bytes());
    for piece in pieces {
        let numbers = [
            piece.id.layer,
            piece.id.expert.index(),
            piece.offset,
            piece.total,
            piece.bytes.len(),
        ];
        for number in numbers {
            out.extend_from_slice(&(number as u64).to_le_bytes());
        }
        out.extend_from_slice(&piece.bytes);
    }
}

fn checksum(head: &[u8]) -> u64 {
    xxh3_64(&head[..FIXED - 8]) ^ xxh3_64(&head[FIXED..]).rotate_left(1)
}

/// Reads a message.
///
/// # Errors
///
/// If control or load are damaged: this rank cannot know what the others will do.
pub(crate) fn parse(from: Rank, bytes: &Bytes) -> Result<Frame, LiveError> {
    let problem = |problem: String| LiveError::Message {
        rank: from,
        problem,
    };
    let fixed: &[u8; FIXED] = bytes.first_chunk().ok_or_else(|| {
        problem(format!(
            "{} bytes arrived, expected at least {FIXED}",
            bytes.len()
        ))
    })?;
    let word = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    let half = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| fixed[at + i]));
    if half(0) != MAGIC {
        return Err(problem("it is no message of a live step".to_owned()));
    }
    let control_end = FIXED + half(4) as usize;
    let head = usize::try_from(word(8))
        .ok()
        .and_then(|n| n.checked_mul(8)?.checked_add(control_end))
        .filter(|&end| end <= bytes.len())
        .ok_or_else(|| problem(format!("{} bytes arrived, some are missing", bytes.len())))?;
    let (got, expected) = (checksum(&bytes[..head]), word(16));
    if got != expected {
        return Err(problem(format!(
            "its checksum is {got:016x}, expected {expected:016x}"
        )));
    }
    let control =
        serde_json::from_slice(&bytes[FIXED..control_end]).map_err(|e| problem(e.to_string()))?;
    let load = bytes[control_end..head].as_chunks().0;
    Ok(Frame {
        control,
        load: load.iter().map(|&b| u64::from_le_bytes(b)).collect(),
        pieces: parse_pieces(bytes.slice(head..)),
    })
}

fn parse_pieces(mut rest: Bytes) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    while !rest.is_empty() {
        let (piece, length) = parse_piece(&rest)?;
        pieces.push(piece);
        rest = rest.slice(length..);
    }
    Ok(pieces)
}

/// The piece that the bytes begin with, and how many of them are its own.
fn parse_piece(bytes: &Bytes) -> Result<(Piece, usize), String> {
    let cut = || format!("a piece of an expert was cut to {} bytes", bytes.len());
    let numbers = bytes.get(..PIECE).ok_or_else(cut)?;
    let numbers: Vec<usize> = numbers
        .as_chunks()
        .0
        .iter()
        .map(|&b| usize::try_from(u64::from_le_bytes(b)).map_err(|_| cut()))
        .collect::<Result<_, _>>()?;
    let [layer, expert, offset, total, length] = numbers[..] else {
        return Err(cut());
    };
    if u32::try_from(expert).is_err() {
        return Err(format!("a piece names expert {expert}"));
    }
    let end = PIECE.checked_add(length);
    let end = end.filter(|&end| end <= bytes.len()).ok_or_else(cut)?;
    let piece = Piece {
        id: ExpertId {
            layer,
            expert: LogicalExpert::new(expert),
        },
        offset,
        total,
        bytes: bytes.slice(PIECE..end),
    };
    Ok((piece, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn control() -> Control {
        Control {
            step: 12,
            digest: u64::MAX,
            report: Report::Moving {
                sent: true,
                ready: vec![3, 0],
            },
            leaving: true,
            command: Some(Command::Adopt {
                layers: vec![Placement::from_ranks(2, &[vec![1], vec![0]]).unwrap()],
                order: vec![0],
                gain: 1.5,
            }),
        }
    }

    fn piece() -> Piece {
        Piece {
            id: ExpertId {
                layer: 1,
                expert: LogicalExpert::new(5),
            },
            offset: 10,
            total: 13,
            bytes: Bytes::from_static(&[7, 8, 9]),
        }
    }

    fn message(load: &[u64], pieces: &[Piece]) -> Bytes {
        let mut out = Vec::new();
        let control = encode_control(&control()).unwrap();
        put(&mut out, &control, load, pieces.iter());
        out.into()
    }

    #[test]
    fn messages_arrive() {
        let rank = Rank::new(1);
        let empty = Piece {
            bytes: Bytes::new(),
            ..piece()
        };
        for (load, pieces) in [
            (vec![], vec![]),
            (vec![3, 1 << 60], vec![piece()]),
            (vec![], vec![piece(), empty, piece()]),
        ] {
            let frame = parse(rank, &message(&load, &pieces)).unwrap();
            assert_eq!((frame.control, frame.load), (control(), load));
            assert_eq!(frame.pieces, Ok(pieces));
        }
    }

    #[test]
    fn damage_to_the_control_is_found_and_damage_to_a_piece_is_told_apart() {
        let rank = Rank::new(1);
        let whole = message(&[3, 4], &[piece(), piece()]);
        let head = message(&[3, 4], &[]).len();
        let first = message(&[3, 4], &[piece()]).len();
        for at in 0..head {
            let mut damaged = whole.to_vec();
            damaged[at] ^= 1;
            let error = parse(rank, &damaged.into()).unwrap_err();
            assert!(matches!(error, LiveError::Message { .. }), "{at}: {error}");
        }
        for length in 0..head {
            parse(rank, &whole.slice(..length)).unwrap_err();
        }
        for length in (head + 1..whole.len()).filter(|&length| length != first) {
            let frame = parse(rank, &whole.slice(..length)).unwrap();
            assert_eq!(frame.control, control());
            assert!(frame.pieces.is_err(), "{length}");
        }
    }
}
