//! A communicator that does what it is told to do wrong.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use moekit_live::{Group, Membership};
use moekit_parallel::{
    Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp, ThreadMember,
};
use moekit_routing::Rank;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The thread dies before the exchange.
    DieBefore,
    /// The thread dies after the exchange, before it does anything with what it got.
    DieAfter,
    /// The message to a rank loses its last bytes.
    Cut { to: usize, bytes: usize },
    /// A byte of the message to a rank changes, counted from its end.
    Flip { to: usize, from_end: usize },
}

/// A fault in one of the exchanges of a member, counted from 0 over all groups.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Plan {
    pub fault: Fault,
    pub exchange: u64,
}

/// A member whose communicators are faulty.
#[derive(Debug)]
pub struct FaultyMember {
    pub member: ThreadMember,
    pub plan: Option<Plan>,
    exchanges: Arc<AtomicU64>,
}

impl FaultyMember {
    pub fn new(member: ThreadMember, plan: Option<Plan>) -> Self {
        Self {
            member,
            plan,
            exchanges: Arc::default(),
        }
    }
}

impl Membership for FaultyMember {
    fn member(&self) -> u64 {
        self.member.id()
    }

    fn num_waiting(&self) -> usize {
        self.member.num_waiting()
    }

    fn next_group(&self) -> Result<Group, CommError> {
        let (members, inner) = self.member.regroup();
        let comm = Faulty {
            inner,
            plan: self.plan,
            exchanges: self.exchanges.clone(),
        };
        Ok(Group::new(Arc::new(comm), members))
    }
}

#[derive(Debug)]
struct Faulty<C> {
    inner: C,
    plan: Option<Plan>,
    exchanges: Arc<AtomicU64>,
}

impl<C: Communicator> Communicator for Faulty<C> {
    fn rank(&self) -> Rank {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_to_all_v(&self, send: Buffer, counts: &[usize]) -> Result<Blocks, CommError> {
        let exchange = self.exchanges.fetch_add(1, Ordering::Relaxed);
        let fault = self.plan.filter(|plan| plan.exchange == exchange);
        let (mut bytes, mut counts) = (send.to_bytes().to_vec(), counts.to_vec());
        let end = |to: usize, counts: &[usize]| counts[..=to].iter().sum::<usize>();
        match fault.map(|plan| plan.fault) {
            Some(Fault::DieBefore) => resume_unwind(Box::new("killed")),
            Some(Fault::Cut { to, bytes: cut }) if to < counts.len() && cut <= counts[to] => {
                let end = end(to, &counts);
                bytes.drain(end - cut..end);
                counts[to] -= cut;
            }
            Some(Fault::Flip { to, from_end }) if to < counts.len() && from_end < counts[to] => {
                let end = end(to, &counts);
                bytes[end - 1 - from_end] ^= 0x40;
            }
            _ => {}
        }
        let blocks = self.inner.all_to_all_v(bytes.into(), &counts);
        if fault.is_some_and(|plan| plan.fault == Fault::DieAfter) {
            resume_unwind(Box::new("killed"));
        }
        blocks
    }

    fn all_gather_v(&self, send: Buffer) -> Result<Blocks, CommError> {
        self.inner.all_gather_v(send)
    }

    fn all_reduce(
        &self,
        values: Buffer,
        element: ElementType,
        op: ReduceOp,
    ) -> Result<Buffer, CommError> {
        self.inner.all_reduce(values, element, op)
    }

    fn send(&self, to: Rank, tag: u32, message: Buffer) -> Result<(), CommError> {
        self.inner.send(to, tag, message)
    }

    fn recv(&self, from: Rank, tag: u32) -> Result<Buffer, CommError> {
        self.inner.recv(from, tag)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.inner.barrier()
    }

    fn abort(&self, message: &str) -> CommError {
        self.inner.abort(message)
    }
}
