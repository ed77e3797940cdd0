//! Groups that come and go among ranks that are threads; over MPI, the tests of `moekit-live` form
//! them.
#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use moekit_parallel::{CommError, Communicator, CommunicatorExt, RankPool, ReduceOp, ThreadGroup};
use moekit_routing::Rank;

/// Runs ranks, and fails if they do not end.
fn run<T: Send + 'static>(
    size: usize,
    first: usize,
    body: impl Fn(usize, &RankPool) -> Result<T, CommError> + Send + Sync + 'static,
) -> Vec<T> {
    let (done, wait) = channel();
    thread::spawn(move || {
        let result = ThreadGroup::run(size, |comm| {
            let rank = comm.rank().index();
            body(rank, &RankPool::new(Arc::new(comm), first))
        });
        done.send(result).ok();
    });
    let result = wait.recv_timeout(Duration::from_secs(120));
    result.expect("the ranks end").unwrap()
}

fn sum(comm: &Arc<dyn Communicator>, value: u64) -> Result<u64, CommError> {
    Ok(comm.all_reduce_values(vec![value], ReduceOp::Sum)?[0])
}

#[test]
fn a_group_grows_and_shrinks_again_and_again() {
    let sums = run(4, 1, |rank, pool| {
        let mut sums = Vec::new();
        if rank == 0 {
            let member = pool.enter();
            assert_eq!(member.regroup()?.0, [0]);
            for size in [4, 2, 3] {
                let mut invited = 0;
                while invited < size - 1 {
                    // Who has just left may not have told yet.
                    invited += pool.invite(size - 1 - invited)?;
                }
                pool.wait_for_newcomers(size - 1)?;
                assert_eq!(member.num_waiting()?, size - 1);
                let (members, group) = member.regroup()?;
                assert_eq!((members[0], members.len()), (0, size));
                sums.push(sum(&group, 1)?);
                assert_eq!(member.regroup()?.0, [0], "all others have left");
            }
            return Ok(sums);
        }
        while pool.wait_for_invitation()? {
            let member = pool.enter();
            let (_, group) = member.regroup()?;
            sums.push(sum(&group, 1)?);
        }
        Ok(sums)
    });
    assert_eq!(sums[0], [4, 2, 3]);
    let all: usize = sums.iter().map(Vec::len).sum();
    assert_eq!(all, 3 + 3 + 1 + 2);
}

#[test]
fn survivors_go_on_without_one_that_is_lost() {
    let groups = run(4, 4, |rank, pool| {
        let member = pool.enter();
        let (members, group) = member.regroup()?;
        assert_eq!(members, [0, 1, 2, 3]);
        group.barrier()?;
        if rank == 1 {
            return Ok(members);
        }
        sum(&group, 1).unwrap_err();
        let (members, group) = member.regroup()?;
        assert_eq!(sum(&group, members.len() as u64)?, 9);
        Ok(members)
    });
    assert_eq!(groups[3], [0, 2, 3]);
}

/// Rank 0 decides who is in the next group, unless it has left.
#[test]
fn the_first_rank_may_leave_while_another_waits() {
    let groups = run(3, 2, |rank, pool| {
        if rank == 2 {
            let member = pool.enter();
            let (members, group) = member.regroup()?;
            group.barrier()?;
            return Ok(members);
        }
        let member = pool.enter();
        let (members, _group) = member.regroup()?;
        if rank == 0 {
            return Ok(members);
        }
        let mut group = member.regroup()?;
        while group.0.len() < 2 || group.0.contains(&0) {
            group = member.regroup()?;
        }
        group.1.barrier()?;
        Ok(group.0)
    });
    assert_eq!(groups[1..], [vec![1, 2], vec![1, 2]]);
}

#[test]
fn who_waits_for_a_group_that_is_no_more_hears_of_it() {
    let ends = run(2, 1, |rank, pool| {
        if rank == 0 {
            pool.enter().regroup()?;
            return Ok(None);
        }
        while !pool.is_over()? {
            thread::yield_now();
        }
        assert!(!pool.wait_for_invitation()?);
        Ok(pool.enter().regroup().err())
    });
    assert_eq!(ends, [None, Some(CommError::NoGroup)]);
}

/// Rank 1 leaves only when rank 0, a spare by then, has answered it.
#[test]
fn a_spare_may_do_something_else_while_it_waits() {
    run(2, 2, |rank, pool| {
        let member = pool.enter();
        let (_, group) = member.regroup()?;
        group.barrier()?;
        let comm = pool.comm();
        if rank == 1 {
            comm.send(Rank::new(0), 1, vec![7_u8].into())?;
            comm.recv(Rank::new(0), 1)?;
            return Ok(());
        }
        drop(member);
        let mut heard = Vec::new();
        let invited = pool.wait_for_invitation_while(|| {
            while let Some(message) = comm.try_recv(Rank::new(1), 1)? {
                heard.extend(message.to_bytes().to_vec());
                comm.send(Rank::new(1), 1, message)?;
            }
            Ok::<_, CommError>(())
        })?;
        assert_eq!((invited, heard), (false, vec![7]));
        Ok(())
    });
}
