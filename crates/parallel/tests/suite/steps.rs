//! Calls that wait for other ranks, each with what must come back.

use moekit_parallel::{CommError, Communicator, CommunicatorExt, ReduceOp};
use moekit_routing::Rank;

/// Any call that waits for other ranks.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Step {
    AllToAll,
    AllGather,
    AllReduce,
    Barrier,
    /// Receive from the next rank, which sends beforehand.
    Ring,
}

pub(crate) const STEPS: [Step; 5] = [
    Step::AllToAll,
    Step::AllGather,
    Step::AllReduce,
    Step::Barrier,
    Step::Ring,
];

impl Step {
    /// Makes the call and checks what comes back. What every rank sends is known to all.
    pub(crate) fn run(self, comm: &dyn Communicator, round: usize) -> Result<(), CommError> {
        let (me, size) = (comm.rank().index(), comm.size());
        match self {
            Self::AllToAll => {
                let counts: Vec<usize> = (0..size).map(|to| count(me, to, round)).collect();
                let send = (0..size).flat_map(|to| message(me, to, round)).collect();
                let blocks = comm.all_to_all_values(send, &counts)?;
                for from in 0..size {
                    let block = blocks.get(Rank::new(from)).unwrap();
                    assert_eq!(*block, message(from, me, round));
                }
            }
            Self::AllGather => {
                let blocks = comm.all_gather_values(message(me, me, round))?;
                let expected: Vec<i64> = (0..size).flat_map(|r| message(r, r, round)).collect();
                assert_eq!(*blocks.concat(), expected);
            }
            Self::AllReduce => {
                let mine = |rank| vec![rank as f32 + 0.1, round as f32, 1.0 / (rank as f32 + 1.0)];
                let sum = comm.all_reduce_values(mine(me), ReduceOp::Sum)?;
                let expected = (1..size).fold(mine(0), |total, rank| {
                    total.iter().zip(mine(rank)).map(|(a, b)| a + b).collect()
                });
                assert_eq!(sum, expected);
            }
            Self::Barrier => comm.barrier()?,
            Self::Ring => {
                let (next, last) = ((me + 1) % size, (me + size - 1) % size);
                comm.send_values(Rank::new(last), 3, message(me, last, round))?;
                let got: Vec<i64> = comm.recv_values(Rank::new(next), 3)?;
                assert_eq!(got, message(next, me, round));
            }
        }
        Ok(())
    }
}

/// Uneven, often 0.
fn count(from: usize, to: usize, round: usize) -> usize {
    (from * 7 + to * 3 + round * 5) % 6 % 4
}

fn message(from: usize, to: usize, round: usize) -> Vec<i64> {
    let id = (from * 1000 + to * 100_000 + round * 10_000_000) as i64;
    (0..count(from, to, round) as i64).map(|i| id + i).collect()
}
