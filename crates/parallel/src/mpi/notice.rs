//! What ranks tell each other beside the calls of their callers.

use moekit_routing::Rank;

use crate::{CommError, MAX_TAG};

/// The tag of notices, behind those of messages.
pub(super) const NOTICE_TAG: u32 = MAX_TAG + 1;

/// A notice of one rank of a group to all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Notice {
    /// The group has ended in the name of the sender.
    Abort {
        /// Collectives that the sender had completed.
        completed: u64,
        message: String,
    },
    /// The sender makes no further call.
    Returned {
        /// Collectives that it had completed.
        completed: u64,
        /// Why, if it failed.
        failure: Option<String>,
    },
    /// The sender waits for the other members of a subgroup, ranks of this group.
    Join { members: Vec<usize> },
}

const ABORT: u8 = 0;
const RETURNED: u8 = 1;
const FAILED: u8 = 2;
const JOIN: u8 = 3;

impl Notice {
    pub(super) fn encode(&self) -> Vec<u8> {
        let with_text = |kind: u8, completed: u64, text: &str| {
            let mut bytes = vec![kind];
            bytes.extend(completed.to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        match self {
            Self::Abort { completed, message } => with_text(ABORT, *completed, message),
            Self::Returned { completed, failure } => match failure {
                None => with_text(RETURNED, *completed, ""),
                Some(message) => with_text(FAILED, *completed, message),
            },
            Self::Join { members } => {
                let mut bytes = vec![JOIN];
                bytes.extend(members.iter().flat_map(|&m| (m as u64).to_le_bytes()));
                bytes
            }
        }
    }

    /// `None` if the bytes are no notice.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        if kind == JOIN {
            let (members, []) = rest.as_chunks() else {
                return None;
            };
            let members = members
                .iter()
                .map(|&m| usize::try_from(u64::from_le_bytes(m)));
            let members = members.collect::<Result<_, _>>().ok()?;
            return Some(Self::Join { members });
        }
        let (completed, text) = rest.split_first_chunk()?;
        let completed = u64::from_le_bytes(*completed);
        let text = String::from_utf8_lossy(text).into_owned();
        Some(match kind {
            ABORT => Self::Abort {
                completed,
                message: text,
            },
            RETURNED => Self::Returned {
                completed,
                failure: None,
            },
            FAILED => Self::Returned {
                completed,
                failure: Some(text),
            },
            _ => return None,
        })
    }
}

/// The error that a failure of a rank is to the others.
pub(super) fn peer_failed(rank: usize, message: &str) -> CommError {
    CommError::PeerFailed {
        rank: Rank::new(rank),
        message: message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_back() {
        let notices = [
            Notice::Abort {
                completed: 7,
                message: "expert 3: µ is lost".to_owned(),
            },
            Notice::Returned {
                completed: u64::MAX,
                failure: None,
            },
            Notice::Returned {
                completed: 0,
                failure: Some(String::new()),
            },
            Notice::Join {
                members: vec![3, 0, 1],
            },
            Notice::Join { members: vec![] },
        ];
        for notice in notices {
            assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }
        for bytes in [&[][..], &[0, 1], &[9, 0, 0, 0, 0, 0, 0, 0, 0], &[3, 1]] {
            assert_eq!(Notice::decode(bytes), None, "{bytes:?}");
        }
    }
}
