//! What dispatch and combine cost, without the experts between them.
//!
//! ```sh
//! cargo build --release -p moekit-parallel --example exchange --features mpi
//! target/release/examples/exchange threads 2       # two ranks, each a thread
//! target/release/examples/exchange tcp 2           # two ranks, each a process that this one starts
//! mpirun -n 2 target/release/examples/exchange     # two ranks, each a process of an MPI job
//! ```
//!
//! Prints, per number of tokens of each rank, the median over rounds of the slowest rank's time.

use std::error::Error;
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use moekit_fused_moe::{ExpertOutputs, RoutedTokens, Rows, TokenDispatcher};
use moekit_parallel::{
    Communicator, CommunicatorExt, EpDispatcher, ReduceOp, TcpCommunicator, TcpGroup, ThreadGroup,
};
use moekit_routing::{Placement, RoutingTable, Topology};

const EXPERTS: usize = 64;
const TOP_K: usize = 8;
const HIDDEN: usize = 2048;
const TOKENS: [usize; 4] = [1, 16, 128, 1024];
const ROUNDS: usize = 31;

type Failure = Box<dyn Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    if TcpGroup::is_rank() {
        let body = |comm: TcpCommunicator| measure("processes over TCP", &shared(comm));
        return Ok(TcpGroup::run(body, |error| eprintln!("{error}"))?);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["threads", size] => {
            ThreadGroup::run(size.parse()?, |comm| measure("threads", &shared(comm)))?;
        }
        ["tcp", size] => {
            let this = std::env::current_exe()?;
            for mut rank in TcpGroup::spawn(size.parse()?, |_| Command::new(&this))? {
                rank.wait()?;
            }
        }
        _ => processes()?,
    }
    Ok(())
}

#[cfg(feature = "mpi")]
fn processes() -> Result<(), Failure> {
    use moekit_parallel::MpiGroup;

    let body =
        |comm: moekit_parallel::MpiCommunicator| measure("processes over MPI", &shared(comm));
    MpiGroup::run(body, |error| eprintln!("{error}")).or_else(|_| MpiGroup::end_job(1))
}

#[cfg(not(feature = "mpi"))]
fn processes() -> Result<(), Failure> {
    Err("`threads N`, `tcp N`, or build with `--features mpi` and start under mpirun".into())
}

fn shared(comm: impl Communicator + 'static) -> Arc<dyn Communicator> {
    Arc::new(comm)
}

fn measure(what: &str, comm: &Arc<dyn Communicator>) -> Result<(), Failure> {
    let size = comm.size();
    let owners: Vec<Vec<usize>> = (0..size)
        .map(|rank| (rank * EXPERTS / size..(rank + 1) * EXPERTS / size).collect())
        .collect();
    let placement = Placement::from_ranks(EXPERTS, &owners)?;
    let table = RoutingTable::new(placement, Topology::new(size)?, 0, 0)?;
    let dispatcher = EpDispatcher::new(Arc::clone(comm));
    for num_tokens in TOKENS {
        let mut barrier = Vec::with_capacity(ROUNDS);
        let mut exchange = Vec::with_capacity(ROUNDS);
        for round in 0..ROUNDS {
            comm.barrier()?;
            let start = Instant::now();
            comm.barrier()?;
            barrier.push(slowest(&**comm, start)?);
            comm.barrier()?;
            let start = Instant::now();
            pass(&dispatcher, &table, num_tokens, round)?;
            exchange.push(slowest(&**comm, start)?);
        }
        if comm.rank().index() == 0 {
            println!(
                "{size} {what}, {num_tokens} tokens of {HIDDEN} f32 each, top-{TOP_K}: \
                 dispatch and combine {:.1} us, a barrier {:.1} us",
                median(exchange),
                median(barrier)
            );
        }
    }
    Ok(())
}

/// Every token to the ranks of its experts and back, which return it as it is.
fn pass(
    dispatcher: &EpDispatcher,
    table: &RoutingTable,
    num_tokens: usize,
    round: usize,
) -> Result<(), Failure> {
    let hidden = vec![0.5f32; num_tokens * HIDDEN];
    let ids: Vec<i64> = (0..num_tokens)
        .flat_map(|token| (0..TOP_K).map(move |k| (token * 13 + k * 7 + round) % EXPERTS))
        .map(|id| id as i64)
        .collect();
    let weights = vec![1.0f32; ids.len()];
    let tokens = RoutedTokens::new(Rows::F32(&hidden), HIDDEN, &ids, &weights, TOP_K, table)?;
    let dispatched = dispatcher.dispatch(&tokens)?;
    let Rows::F32(rows) = dispatched.hidden.as_rows() else {
        return Err("f32 in, f32 out".into());
    };
    let outputs = ExpertOutputs::Summed(rows.to_vec());
    dispatcher.combine(outputs, dispatched.handle)?;
    Ok(())
}

/// Microseconds since `start` on the slowest rank.
fn slowest(comm: &dyn Communicator, start: Instant) -> Result<f64, Failure> {
    let own = start.elapsed().as_secs_f64() * 1e6;
    Ok(comm.all_reduce_values(vec![own], ReduceOp::Max)?[0])
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
