//! A communicator that does what it is told to do wrong.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use moekit_live::{Group, LiveConfig, LiveRank, Membership};
use moekit_parallel::{
    Blocks, Buffer, CommError, Communicator, ElementType, ReduceOp, ThreadWorld,
};
use moekit_routing::Rank;

use super::{Model, Seen, run};

/// Ranks of a group with a fault.
pub const RANKS: usize = 3;

/// Dispatch and combine of two layers, and the exchange between steps.
pub const EXCHANGES_PER_STEP: u64 = 5;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// The rank dies before the exchange.
    DieBefore,
    /// The rank dies after the exchange, before it does anything with what it got.
    DieAfter,
    /// The call fails after the exchange, on this rank alone.
    FailAfter,
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
pub struct FaultyMember<M> {
    member: M,
    plan: Option<Plan>,
    /// How it dies.
    death: fn() -> !,
    exchanges: Arc<AtomicU64>,
}

impl<M: Membership> FaultyMember<M> {
    pub fn new(member: M, plan: Option<Plan>, death: fn() -> !) -> Self {
        Self {
            member,
            plan,
            death,
            exchanges: Arc::default(),
        }
    }
}

impl<M: Membership> Membership for FaultyMember<M> {
    fn member(&self) -> u64 {
        self.member.member()
    }

    fn num_waiting(&self) -> usize {
        self.member.num_waiting()
    }

    fn next_group(&self) -> Result<Group, CommError> {
        let group = self.member.next_group()?;
        let comm = Faulty {
            inner: group.comm,
            plan: self.plan,
            death: self.death,
            exchanges: self.exchanges.clone(),
        };
        Ok(Group::new(Arc::new(comm), group.members))
    }
}

#[derive(Debug)]
struct Faulty {
    inner: Arc<dyn Communicator>,
    plan: Option<Plan>,
    death: fn() -> !,
    exchanges: Arc<AtomicU64>,
}

impl Communicator for Faulty {
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
            Some(Fault::DieBefore) => (self.death)(),
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
        match fault.map(|plan| plan.fault) {
            Some(Fault::DieAfter) => (self.death)(),
            Some(Fault::FailAfter) => Err(CommError::PeerFailed {
                rank: self.rank(),
                message: "what arrived was lost".to_owned(),
            }),
            _ => blocks,
        }
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

/// Ranks of which member `who` has a fault; `None` for one that died of it.
pub fn with_fault(
    model: &Model,
    config: &LiveConfig,
    steps: u64,
    who: u64,
    plan: Option<Plan>,
) -> Vec<Option<Seen>> {
    let world = ThreadWorld::new(RANKS);
    let threads: Vec<_> = (0..RANKS)
        .map(|_| {
            let (model, config, member) = (model.clone(), config.clone(), world.enter());
            thread::spawn(move || {
                let id = member.id();
                let member = FaultyMember::new(member, plan.filter(|_| id == who), || {
                    resume_unwind(Box::new("killed"))
                });
                let live = model.start(member, RANKS, config).unwrap();
                run(&model, live, id, steps, true)
            })
        })
        .collect();
    threads.into_iter().map(|t| t.join().ok()).collect()
}

/// A rank of two whose other half has gone, with all that it held; its group has ended. With the
/// world, so that others may come.
pub fn bereaved(model: &Model, config: &LiveConfig) -> (LiveRank, ThreadWorld) {
    let world = ThreadWorld::new(2);
    let (stays, leaves) = (world.enter(), world.enter());
    let gone = {
        let (model, config) = (model.clone(), config.clone());
        thread::spawn(move || {
            let mut live = model.start(leaves, 2, config).unwrap();
            model.step(&live, 1, true).unwrap();
            live.end_step().unwrap();
            // Leaves without notice.
        })
    };
    let mut live = model.start(stays, 2, config.clone()).unwrap();
    model.step(&live, 0, true).unwrap();
    live.end_step().unwrap();
    gone.join().unwrap();
    let error = model
        .step(&live, 0, true)
        .and_then(|_| live.end_step().map(|_| 0));
    let error = error.unwrap_err();
    assert!(error.ends_group(), "{error}");
    (live, world)
}
