//! Experts move every few steps between processes, processes come, leave and are lost to the group,
//! and no output shows it.
//!
//! The test starts itself again under `mpirun`.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[cfg(feature = "mpi")]
mod common;
#[cfg(feature = "mpi")]
#[path = "../../parallel/tests/suite/mpirun.rs"]
mod mpirun;

#[cfg(not(feature = "mpi"))]
fn main() {
    println!("tests over MPI skipped: they need the feature `mpi`, and an MPI library to build it");
}

#[cfg(feature = "mpi")]
fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("rank") => over_mpi::rank(),
        _ => over_mpi::jobs(),
    }
}

#[cfg(feature = "mpi")]
mod over_mpi {
    use std::sync::Arc;

    use moekit_fused_moe::Reduction;
    use moekit_live::{Event, FixedGroup, LiveConfig, LiveRank};
    use moekit_parallel::{CommError, Communicator, MpiCommunicator, MpiGroup, RankPool};
    use moekit_routing::Rank;

    use crate::common::fixtures::model;
    use crate::common::{Model, Rotate, run, spread_over};
    use crate::mpirun;

    const CHECKPOINTS: [&str; 4] = [
        "qwen3_moe-bf16",
        "qwen3_moe-fp8-block64x32",
        "gpt_oss-mxfp4",
        "kimi_k2-ct-w4a16-g32",
    ];

    pub(crate) fn jobs() {
        for size in [2, 3, 4] {
            let ended = mpirun::run(size, &[]);
            print!("{}", ended.stdout);
            assert!(ended.success, "{size} processes: {}", ended.stderr);
            assert_eq!(
                ended.stdout.matches(" ... ok").count(),
                2 * CHECKPOINTS.len()
            );
        }
    }

    pub(crate) fn rank() {
        let body = |comm: MpiCommunicator| -> Result<(), CommError> {
            for name in CHECKPOINTS {
                for (reduction, exact) in [(Reduction::PerSlot, true), (Reduction::PerRank, false)]
                {
                    let model = model(name, reduction, false);
                    moves(&comm, &model, exact)?;
                    grows_and_shrinks(&comm, &model, exact)?;
                    loses_a_rank(&comm, &model, exact)?;
                    if comm.rank().index() == 0 {
                        println!("{name}, {reduction:?}, {} processes ... ok", comm.size());
                    }
                }
            }
            Ok(())
        };
        if MpiGroup::run(body, |error| eprintln!("{error}")).is_err() {
            MpiGroup::end_job(1);
        }
    }

    fn config() -> LiveConfig {
        LiveConfig::new(Arc::new(Rotate { by: 3 }))
            .with_redundant_experts(1)
            .with_bytes_per_step(40_000)
            .with_synchronous(true)
    }

    /// All processes, apart from what others say.
    fn whole(comm: &MpiCommunicator) -> Result<Arc<dyn Communicator>, CommError> {
        let all: Vec<Rank> = (0..comm.size()).map(Rank::new).collect();
        Ok(comm.subgroup(&all)?.unwrap())
    }

    /// Every output is compared with that of one rank, while experts move.
    fn moves(comm: &MpiCommunicator, model: &Model, exact: bool) -> Result<(), CommError> {
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
    fn grows_and_shrinks(
        comm: &MpiCommunicator,
        model: &Model,
        exact: bool,
    ) -> Result<(), CommError> {
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
    fn loses_a_rank(comm: &MpiCommunicator, model: &Model, exact: bool) -> Result<(), CommError> {
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
}
