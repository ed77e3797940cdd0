//! Names of calls, for agreement between ranks and for errors.

use std::fmt;

use crate::reduce::{ElementType, ReduceOp};

/// A collective with everything that must be the same on all ranks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Collective {
    AllToAllV,
    AllGatherV,
    AllReduce {
        op: ReduceOp,
        element: ElementType,
        count: usize,
    },
    Barrier,
}

/// Any call of a communicator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Call {
    Collective(Collective),
    Send { to: usize, tag: u32 },
    Recv { from: usize, tag: u32 },
}

impl fmt::Display for Collective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllToAllV => f.write_str("all_to_all_v"),
            Self::AllGatherV => f.write_str("all_gather_v"),
            Self::AllReduce { op, element, count } => {
                write!(f, "all_reduce({op} of {count} {element})")
            }
            Self::Barrier => f.write_str("barrier"),
        }
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Collective(collective) => collective.fmt(f),
            Self::Send { to, tag } => write!(f, "send(to {to}, tag {tag})"),
            Self::Recv { from, tag } => write!(f, "recv(from {from}, tag {tag})"),
        }
    }
}
