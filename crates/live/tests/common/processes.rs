//! What ranks that are processes do, over any transport: experts move every few steps, processes
//! come, leave and are lost to the group, and no output shows it.

use std::sync::Arc;

use moekit_fused_moe::Reduction;
use moekit_live::{Event, FixedGroup, LiveConfig, LiveRank};
use moekit_parallel::{CommError, Communicator, RankPool};
use moekit_routing::Rank;

use super::fixtures::model;
use super::{Model, Rotate, run, spread_over};

pub const CHECKPOINTS: [&str; 4] = [
    "qwen3_moe-bf16",
    "qwen3_moe-fp8-block64x32",
    "gpt_oss-mxfp4",
    "kimi_k2-ct-w4a16-g32",
];

/// The reductions, and whether their outputs have the bits of one rank's.
pub const REDUCTIONS: [(Reduction, bool); 2] =
    [(Reduction::PerSlot, true), (Reduction::PerRank, false)];

/// How often [`every_checkpoint`] says that all is well.
pub const NUM_PASSED: usize = CHECKPOINTS.len() * REDUCTIONS.len();

/// All of it, for all checkpoints and both reductions.
pub fn every_checkpoint(comm: &dyn Communicator) -> Result<(), CommError> {
    for name in CHECKPOINTS {
        for (reduction, exact) in REDUCTIONS {
            let model = model(name, reduction, false);
            moves(comm, &model, exact)?;
            grows_and_shrinks(comm, &model, exact)?;
            loses_a_rank(comm, &model, exact)?;
            if comm.rank().index() == 0 {
                println!("{name}, {reduction:?}, {} processes ... ok", comm.size());
            }
        }
    }
    Ok(())
}

fn config() -> LiveConfig {
    LiveConfig::new(Arc::new(Rotate { by: 3 }))
        .with_redundant_experts(1)
        .with_bytes_per_step(40_000)
        .with_synchronous(true)
}

/// All processes, apart from what others say.
fn whole(comm: &dyn Communicator) -> Result<Arc<dyn Communicator>, CommError> {
    let all: Vec<Rank> = (0..comm.size()).map(Rank::new).collect();
    Ok(comm.subgroup(&all)?.unwrap())
}

/// Every output is compared with that of one rank, while experts move.
fn moves(comm: &dyn Communicator, model: &Model, exact: bool) -> Result<(), CommError> {
    let group = FixedGroup::new(whole(comm)?);
    let live = model.start(group, comm.size(), config().with_interval(2));
    let member = comm.rank().index() as u64;
    let seen = run(model, live.unwrap(), member, 16, exact);
    assert!(
        seen.errors.is_empty() && seen.failures().is_empty(),
        "{seen:?}"
    );
    assert!(seen.commits() >= 2, "{seen:?}");
    comm.barrier()
}

/// From one process to all, to one less, and to one.
fn grows_and_shrinks(comm: &dyn Communicator, model: &Model, exact: bool) -> Result<(), CommError> {
    let size = comm.size();
    let pool = RankPool::new(whole(comm)?, 1);
    if comm.rank().index() == 0 {
        let member = pool.enter();
        let live = model.start(member, 1, config().with_interval(5)).unwrap();
        assert_eq!(pool.invite(size)?, size - 1);
        resize(model, live, 0, exact, size);
    } else {
        while pool.wait_for_invitation()? {
            let member = pool.enter();
            let id = member.id();
            let live = model.start(member, 1, config().with_interval(5));
            resize(model, live.unwrap(), id, exact, size);
        }
    }
    comm.barrier()
}

/// Follows the group through its sizes, each of which is reached when all ranks hold something
/// and nothing moves: all ranks see that after the same step.
fn resize(model: &Model, mut live: LiveRank, id: u64, exact: bool, size: usize) {
    let mut sizes = vec![1, size - 1, size];
    sizes.dedup();
    while let Some(&wanted) = sizes.last() {
        live.set_leaving(live.rank().unwrap().index() >= wanted);
        assert_eq!(model.step(&live, id, exact).unwrap(), 0);
        let report = live.end_step().unwrap();
        if report.events.contains(&Event::Left) {
            return;
        }
        if spread_over(&live, wanted) {
            sizes.pop();
        }
    }
    assert_eq!((id, live.members()), (0, &[0][..]), "the first stays");
}

/// The last rank goes without notice.
fn loses_a_rank(comm: &dyn Communicator, model: &Model, exact: bool) -> Result<(), CommError> {
    let size = comm.size();
    let pool = RankPool::new(whole(comm)?, size);
    let member = pool.enter();
    let id = member.id();
    let live = model.start(member, size, config()).unwrap();
    let is_lost = id as usize == size - 1;
    let seen = run(model, live, id, if is_lost { 3 } else { 16 }, exact);
    if is_lost {
        return comm.barrier();
    }
    assert_eq!((seen.errors.len(), seen.absent), (1, 0), "{seen:?}");
    assert_eq!(seen.placements[0].num_ranks(), size - 1);
    let missed = |e: &Event| matches!(e, Event::Regrouped { absent: 1.., .. });
    assert!(seen.events.iter().any(missed), "{seen:?}");
    comm.barrier()
}
