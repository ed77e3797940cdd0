//! Experts move every few steps between processes, processes come, leave and are killed, and no
//! output shows it; over TCP.
//!
//! The test starts itself again, as the processes of a group.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;
#[path = "../../parallel/tests/suite/job.rs"]
mod job;

use std::sync::Arc;

use common::faulty::{EXCHANGES_PER_STEP, Fault, FaultyMember, Plan, RANKS};
use common::processes::{CHECKPOINTS, NUM_PASSED, REDUCTIONS, every_checkpoint};
use common::{Model, Seen, fixtures, rotating, run};
use job::{Ended, tcp};
use moekit_fused_moe::Reduction;
use moekit_live::LiveConfig;
use moekit_parallel::{CommError, RankPool, TcpCommunicator, TcpGroup};

/// Steps of a run in which a process is killed.
const STEPS: u64 = 24;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["rank", ref what @ ..] => rank(what),
        _ => jobs(),
    }
}

fn jobs() {
    for size in [2, 3, 4] {
        let ended = tcp(size, &[]);
        ended.iter().for_each(succeeded);
        print!("{}", ended[0].stdout);
        assert_eq!(ended[0].stdout.matches(" ... ok").count(), NUM_PASSED);
    }
    a_process_may_be_killed_at_any_point();
    two_processes_may_be_killed_at_once();
    the_experts_of_a_process_that_is_killed_are_read_again();
}

fn succeeded(process: &Ended) {
    assert!(process.success, "{}{}", process.stdout, process.stderr);
}

/// In dispatch, in combine, in every round of a migration, between weights and table, before and
/// after every commit.
fn a_process_may_be_killed_at_any_point() {
    for exchange in 2 * EXCHANGES_PER_STEP..9 * EXCHANGES_PER_STEP {
        for when in ["before", "after"] {
            let who = exchange as usize % RANKS;
            killed("random", "-", RANKS, &[(who, when, exchange)]);
        }
    }
    println!("a process may be killed at any point ... ok");
}

fn two_processes_may_be_killed_at_once() {
    for exchange in 3 * EXCHANGES_PER_STEP..5 * EXCHANGES_PER_STEP {
        let first = (exchange as usize % 4, "before", exchange);
        let second = ((exchange as usize + 1) % 4, "after", exchange);
        killed("random", "-", 4, &[first, second]);
    }
    println!("two processes may be killed at once ... ok");
}

fn the_experts_of_a_process_that_is_killed_are_read_again() {
    for name in CHECKPOINTS {
        for (reduction, _) in REDUCTIONS {
            let at = 4 * EXCHANGES_PER_STEP - 1;
            killed(name, &format!("{reduction:?}"), RANKS, &[(1, "before", at)]);
        }
        println!("a process with experts of {name} may be killed ... ok");
    }
}

/// Runs a job in which some ranks are killed, each before or after one of its exchanges. The others
/// go on with the same placement, and every output is right.
fn killed(model: &str, reduction: &str, size: usize, who: &[(usize, &str, u64)]) {
    let plans: Vec<String> = who
        .iter()
        .map(|(rank, when, exchange)| format!("{rank}:{when}:{exchange}"))
        .collect();
    let plans = plans.join(",");
    let ended = tcp(size, &["killed", model, reduction, &plans]);
    let is_killed = |rank: usize| who.iter().any(|(killed, ..)| *killed == rank);
    let (killed, survivors): (Vec<_>, Vec<_>) = ended
        .into_iter()
        .enumerate()
        .partition(|(rank, _)| is_killed(*rank));
    assert!(killed.iter().all(|(_, process)| !process.success));
    survivors.iter().for_each(|(rank, process)| {
        let said = format!("{}{}", process.stdout, process.stderr);
        assert!(process.success, "{model}, {plans}, rank {rank}: {said}");
        assert_eq!(process.stdout, survivors[0].1.stdout, "{model}, {plans}");
    });
}

fn rank(what: &[&str]) {
    let body = |comm: TcpCommunicator| match *what {
        [] => every_checkpoint(&comm),
        ["killed", model, reduction, plans] => member(comm, model, reduction, plans),
        _ => panic!("nothing to do: {what:?}"),
    };
    if let Err(error) = TcpGroup::run(body, |_| {}) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

/// A member that may be killed.
fn member(
    comm: TcpCommunicator,
    model: &str,
    reduction: &str,
    plans: &str,
) -> Result<(), CommError> {
    let size = moekit_parallel::Communicator::size(&comm);
    let per_rank = format!("{:?}", Reduction::PerRank);
    let exact = reduction != per_rank;
    let model = match model {
        // A piece takes two messages: processes are killed in the middle of an expert, too.
        "random" => Model::random(2, Reduction::PerSlot),
        name if exact => fixtures::model(name, Reduction::PerSlot, false),
        name => fixtures::model(name, Reduction::PerRank, false),
    };
    let member = RankPool::new(Arc::new(comm), size).enter();
    let id = member.id();
    let plan = plans.split(',').find_map(|plan| {
        let (rank, plan) = plan.split_once(':')?;
        let (when, exchange) = plan.split_once(':')?;
        let fault = match when {
            "before" => Fault::DieBefore,
            _ => Fault::DieAfter,
        };
        let exchange = exchange.parse().ok()?;
        (rank.parse() == Ok(id)).then_some(Plan { fault, exchange })
    });
    let member = FaultyMember::new(member, plan, job::be_killed);
    let live = model.start(member, size, config()).unwrap();
    let seen = run(&model, live, id, STEPS, exact);
    check(&seen, size - plans.split(',').count());
    Ok(())
}

fn config() -> LiveConfig {
    let config = rotating().with_synchronous(true);
    config.with_bytes_per_step(1600)
}

/// What a survivor has seen; it prints what all survivors are to have in common.
fn check(seen: &Seen, left: usize) {
    assert_eq!(seen.absent, 0, "{seen:?}");
    assert!(
        !seen.errors.is_empty() && seen.failures().is_empty(),
        "{seen:?}"
    );
    assert_eq!(seen.placements[0].num_ranks(), left, "{seen:?}");
    println!("{:?}", seen.placements);
}
