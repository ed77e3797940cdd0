//! What the ranks of a pool tell each other.

/// A notice of one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    /// A member waits for the group behind the one of that number, or to be let into any.
    Waits { member: u64, behind: Option<u64> },
    /// A member has left.
    Left { member: u64 },
    /// A group has formed.
    Formed {
        number: u64,
        members: Vec<u64>,
        /// Of each rank, how many of its members have ever been in a group or are in this one.
        entered: Vec<u64>,
    },
    /// The rank that gets this is to enter.
    Invited,
    /// The sender knows that a rank is gone, and has told what it had heard of that rank before.
    Gone { rank: u64 },
}

const WAITS: u64 = 0;
const WAITS_BEHIND: u64 = 1;
const LEFT: u64 = 2;
const FORMED: u64 = 3;
const INVITED: u64 = 4;
const GONE: u64 = 5;

impl Notice {
    pub(super) fn encode(&self) -> Vec<u8> {
        let words = match self {
            Self::Waits { member, behind } => match behind {
                None => vec![WAITS, *member],
                Some(number) => vec![WAITS_BEHIND, *member, *number],
            },
            Self::Left { member } => vec![LEFT, *member],
            Self::Formed {
                number,
                members,
                entered,
            } => {
                let mut words = vec![FORMED, *number, members.len() as u64];
                words.extend(members);
                words.extend(entered);
                words
            }
            Self::Invited => vec![INVITED],
            Self::Gone { rank } => vec![GONE, *rank],
        };
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    /// `None` if the bytes are no notice.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (words, []) = bytes.as_chunks() else {
            return None;
        };
        let words: Vec<u64> = words.iter().map(|&word| u64::from_le_bytes(word)).collect();
        Some(match words[..] {
            [WAITS, member] => Self::Waits {
                member,
                behind: None,
            },
            [WAITS_BEHIND, member, number] => Self::Waits {
                member,
                behind: Some(number),
            },
            [LEFT, member] => Self::Left { member },
            [FORMED, number, size, ref rest @ ..] => {
                let (members, entered) = rest.split_at_checked(usize::try_from(size).ok()?)?;
                Self::Formed {
                    number,
                    members: members.to_vec(),
                    entered: entered.to_vec(),
                }
            }
            [INVITED] => Self::Invited,
            [GONE, rank] => Self::Gone { rank },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notices_come_back() {
        let notices = [
            Notice::Waits {
                member: 7,
                behind: None,
            },
            Notice::Waits {
                member: u64::MAX,
                behind: Some(0),
            },
            Notice::Left { member: 3 },
            Notice::Formed {
                number: 2,
                members: vec![0, 5],
                entered: vec![1, 1, 0],
            },
            Notice::Invited,
            Notice::Gone { rank: 3 },
        ];
        for notice in notices {
            let bytes = notice.encode();
            assert_eq!(Notice::decode(&bytes), Some(notice));
            assert_eq!(Notice::decode(&bytes[1..]), None);
        }
        let too_many = [FORMED, 1, 9, 0].map(u64::to_le_bytes).concat();
        assert_eq!(Notice::decode(&too_many), None);
        assert_eq!(Notice::decode(&[]), None);
    }
}
