//! What the ranks of a collective tell each other about it, between processes.

use moekit_routing::Rank;

use crate::call::Collective;
use crate::{CommError, ElementType, ReduceOp};

/// What each rank says first in a collective: what it called, and what comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub(crate) struct Header {
    kind: u64,
    /// Values of a reduction, the same on all ranks.
    agreed: u64,
    /// 1 more than the index at which a sum has failed.
    overflow: u64,
    /// Bytes that follow, for the rank that gets this header.
    pub(crate) bytes: u64,
}

const OPS: [ReduceOp; 2] = [ReduceOp::Sum, ReduceOp::Max];
const ELEMENTS: [ElementType; 3] = [ElementType::F32, ElementType::F64, ElementType::U64];
/// Codes of collectives; those of reductions come behind.
const SIMPLE: [Collective; 3] = [
    Collective::Barrier,
    Collective::AllGatherV,
    Collective::AllToAllV,
];

impl Header {
    pub(crate) fn new(collective: Collective) -> Self {
        let code = |index: Option<usize>| index.map_or(u64::MAX, |index| index as u64);
        let (kind, agreed) = match collective {
            Collective::AllReduce { op, element, count } => {
                let op = code(OPS.iter().position(|&o| o == op));
                let element = code(ELEMENTS.iter().position(|&e| e == element));
                let first = SIMPLE.len() as u64;
                (first + op * ELEMENTS.len() as u64 + element, count as u64)
            }
            simple => (code(SIMPLE.iter().position(|&c| c == simple)), 0),
        };
        Self {
            kind,
            agreed,
            overflow: 0,
            bytes: 0,
        }
    }

    /// The same with so many bytes behind it.
    pub(crate) fn with_bytes(self, bytes: usize) -> Self {
        Self {
            bytes: bytes as u64,
            ..self
        }
    }

    /// The same, of a rank whose sum has failed at an index.
    pub(crate) fn with_overflow(self, index: usize) -> Self {
        Self {
            overflow: index as u64 + 1,
            ..self
        }
    }

    fn collective(&self) -> Option<Collective> {
        let kind = usize::try_from(self.kind).ok()?;
        if let Some(&simple) = SIMPLE.get(kind) {
            return Some(simple);
        }
        let reduction = kind - SIMPLE.len();
        Some(Collective::AllReduce {
            op: *OPS.get(reduction / ELEMENTS.len())?,
            element: ELEMENTS[reduction % ELEMENTS.len()],
            count: usize::try_from(self.agreed).ok()?,
        })
    }

    fn name(&self) -> String {
        self.collective().map_or_else(
            || format!("collective {} of another version", self.kind),
            |collective| collective.to_string(),
        )
    }
}

/// Whether all ranks called the same; they all find the same error if not.
///
/// # Arguments
///
/// - `all` - `[size]`, the header of each rank, of which there is one at least.
pub(crate) fn check_agreement(all: &[Header]) -> Result<(), CommError> {
    let same = |header: &Header| (header.kind, header.agreed) == (all[0].kind, all[0].agreed);
    if let Some(other) = all.iter().position(|header| !same(header)) {
        return Err(CommError::Mismatch {
            rank: Rank::new(0),
            call: all[0].name(),
            other_rank: Rank::new(other),
            other_call: all[other].name(),
        });
    }
    let overflow = all.iter().map(|header| header.overflow);
    let Some(index) = overflow.filter(|&index| index > 0).min() else {
        return Ok(());
    };
    let element = match all[0].collective() {
        Some(Collective::AllReduce { element, .. }) => element,
        _ => ElementType::U64,
    };
    Err(CommError::Overflow {
        index: index as usize - 1,
        element,
    })
}
