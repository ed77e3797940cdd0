use moekit_routing::Rank;
use thiserror::Error;

/// What can go wrong between ranks.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CommError {
    /// A rank of the group failed, panicked or gave up; the group cannot go on.
    #[error("rank {rank} failed: {message}")]
    PeerFailed {
        /// The rank that failed first.
        rank: Rank,
        /// Its message.
        message: String,
    },
    /// A rank returned while this call still needs it.
    #[error("rank {rank} has returned, but {call} still needs it")]
    PeerReturned {
        /// The rank that returned.
        rank: Rank,
        /// The call that waits for it.
        call: String,
    },
    /// Ranks disagree about the collective that comes next.
    #[error(
        "rank {rank} called {call} while rank {other_rank} called {other_call}: every rank must make the same collective calls in the same order"
    )]
    Mismatch {
        /// The first rank.
        rank: Rank,
        /// Its call.
        call: String,
        /// The first rank that called something else.
        other_rank: Rank,
        /// What that was.
        other_call: String,
    },
    /// Ranks wait for each other, and none can go on.
    #[error("deadlock: {waits}")]
    Deadlock {
        /// Each rank of the circle and the call in which it waits for the next.
        waits: String,
    },
    /// A call began while another thread of the same rank was in one.
    #[error(
        "rank {rank} called {call} while another of its threads is in {other_call}: one call at a time"
    )]
    Concurrent {
        /// The rank.
        rank: Rank,
        /// The call that was refused.
        call: String,
        /// The call under way.
        other_call: String,
    },
    /// A rank outside of the group.
    #[error("rank {rank} does not exist: the group has ranks 0..{size}")]
    UnknownRank {
        /// The rank asked for.
        rank: Rank,
        /// Size of the group.
        size: usize,
    },
    /// A rank that is to be in a subgroup twice.
    #[error("rank {rank} is named twice: a subgroup has each rank once")]
    DuplicateRank {
        /// The rank.
        rank: Rank,
    },
    /// A member waits to be let into a group of which nobody is left.
    #[error("there is no group to enter: all its members have left")]
    NoGroup,
    /// Something that this transport cannot do.
    #[error("this transport has no {what}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
    },
    /// A tag that not every transport can carry.
    #[error("tag {tag} is out of range: tags go from 0 to {max}")]
    Tag {
        /// The tag given.
        tag: u32,
        /// The largest allowed.
        max: u32,
    },
    /// There must be one count per rank.
    #[error("{got} counts for a group of {size} ranks: one count per rank is needed")]
    NumCounts {
        /// Counts given.
        got: usize,
        /// Size of the group.
        size: usize,
    },
    /// The counts must cover what is sent; all lengths are in bytes.
    #[error("counts of {counts:?} bytes must add up to the length of the buffer, {len} bytes")]
    CountsSum {
        /// The counts given.
        counts: Vec<usize>,
        /// What they should add up to.
        len: usize,
    },
    /// The bytes are not a whole number of values.
    #[error("{len} bytes are not a whole number of values of {element_size} bytes each")]
    ElementSize {
        /// Length in bytes.
        len: usize,
        /// Bytes per value.
        element_size: usize,
    },
    /// More than this transport can send or receive at once.
    #[error("{len} bytes are too many for one call of this transport: at most {max}")]
    TooLarge {
        /// Length in bytes.
        len: usize,
        /// The largest length.
        max: usize,
    },
    /// A sum does not fit its type.
    #[error("the sum over ranks at index {index} exceeds the range of {element}")]
    Overflow {
        /// Position in the buffer, counted in values.
        index: usize,
        /// The type of the values.
        element: crate::ElementType,
    },
}
