//! What ranks that are processes tell each other beside the calls of their callers.

use moekit_routing::Rank;

use crate::CommError;
use crate::standing::{Departure, Gone};

/// A notice of one rank of a group to all others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The group has ended in the name of a rank: of the sender, or of one of which it has heard.
    Abort {
        /// Collectives that the sender had completed.
        completed: u64,
        rank: usize,
        message: String,
    },
    /// The sender makes no further call.
    Returned {
        /// Collectives that it had completed.
        completed: u64,
        /// Why, if it failed.
        failure: Option<String>,
    },
    /// The sender waits for the other members of a subgroup.
    Join {
        /// Ranks of this group.
        members: Vec<usize>,
        /// What the sender calls its end of the subgroup, where a transport needs to know.
        end: u64,
    },
}

const ABORT: u8 = 0;
const RETURNED: u8 = 1;
const FAILED: u8 = 2;
const JOIN: u8 = 3;

impl Notice {
    pub(crate) fn returned(gone: &Gone) -> Self {
        Self::Returned {
            completed: gone.completed,
            failure: match &gone.how {
                Departure::Failed(message) => Some(message.clone()),
                Departure::Returned | Departure::Lost => None,
            },
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let with_rest = |kind: u8, number: u64, rest: &[u8]| {
            let mut bytes = vec![kind];
            bytes.extend(number.to_le_bytes());
            bytes.extend(rest);
            bytes
        };
        match self {
            Self::Abort {
                completed,
                rank,
                message,
            } => {
                let rank = (*rank as u64).to_le_bytes();
                with_rest(ABORT, *completed, &[&rank, message.as_bytes()].concat())
            }
            Self::Returned { completed, failure } => match failure {
                None => with_rest(RETURNED, *completed, &[]),
                Some(message) => with_rest(FAILED, *completed, message.as_bytes()),
            },
            Self::Join { members, end } => {
                let members = members.iter().map(|&m| (m as u64).to_le_bytes());
                with_rest(JOIN, *end, &members.collect::<Vec<_>>().concat())
            }
        }
    }

    /// `None` if the bytes are no notice.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (&kind, rest) = bytes.split_first()?;
        let (number, rest) = rest.split_first_chunk()?;
        let number = u64::from_le_bytes(*number);
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        Some(match kind {
            ABORT => {
                let (rank, rest) = rest.split_first_chunk()?;
                Self::Abort {
                    completed: number,
                    rank: usize::try_from(u64::from_le_bytes(*rank)).ok()?,
                    message: text(rest),
                }
            }
            RETURNED => Self::Returned {
                completed: number,
                failure: None,
            },
            FAILED => Self::Returned {
                completed: number,
                failure: Some(text(rest)),
            },
            JOIN => {
                let (members, []) = rest.as_chunks() else {
                    return None;
                };
                let members = members
                    .iter()
                    .map(|&m| usize::try_from(u64::from_le_bytes(m)));
                Self::Join {
                    members: members.collect::<Result<_, _>>().ok()?,
                    end: number,
                }
            }
            _ => return None,
        })
    }
}

/// The error that a failure of a rank is to the others.
pub(crate) fn peer_failed(rank: usize, message: &str) -> CommError {
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
                rank: 2,
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
                end: 9,
            },
            Notice::Join {
                members: vec![],
                end: 0,
            },
        ];
        for notice in notices {
            assert_eq!(Notice::decode(&notice.encode()), Some(notice));
        }
        let join = [3, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        for bytes in [&[][..], &[0, 1], &[9, 0, 0, 0, 0, 0, 0, 0, 0], &join] {
            assert_eq!(Notice::decode(bytes), None, "{bytes:?}");
        }
    }
}
