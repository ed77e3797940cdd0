//! Many rounds, and failures anywhere in them.

use std::panic::resume_unwind;
use std::sync::Mutex;

use proptest::prelude::*;

use super::{SIZES, STEPS, Step, on_ranks};
use crate::watchdog::watched;
use crate::{CommError, Communicator, ThreadGroup};

#[test]
fn thousands_of_rounds() {
    for size in SIZES {
        on_ranks(size, |comm| {
            for round in 0..2000 {
                STEPS[(round * 7 + round / 5) % STEPS.len()]
                    .run(&comm, round)
                    .unwrap();
            }
        });
    }
}

#[test]
fn many_short_groups() {
    for round in 0..300 {
        on_ranks(1 + round % 8, move |comm| {
            STEPS[round % STEPS.len()].run(&comm, round).unwrap();
        });
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Any program of collectives that one rank leaves anywhere: all others do all that comes
    /// before and nothing that comes after.
    #[test]
    fn a_rank_leaves_anywhere(
        size in 2usize..=8,
        quitter in any::<prop::sample::Index>(),
        steps in prop::collection::vec(prop::sample::select(&STEPS[..4]), 1..20),
        at in any::<prop::sample::Index>(),
        panics in any::<bool>(),
    ) {
        let (quitter, at) = (quitter.index(size), at.index(steps.len()));
        let done = watched(move || {
            let done = Mutex::new(vec![None; size]);
            let result = ThreadGroup::run(size, |comm| -> Result<(), CommError> {
                let me = comm.rank().index();
                for (round, step) in steps.iter().enumerate() {
                    if me == quitter && round == at {
                        return if panics { resume_unwind(Box::new("left")) } else { Ok(()) };
                    }
                    step.run(&comm, round).inspect_err(|error| {
                        done.lock().unwrap()[me] = Some((round, error.clone()));
                    })?;
                }
                Ok(())
            });
            assert!(result.is_err());
            done.into_inner().unwrap()
        });
        for (rank, done) in done.into_iter().enumerate() {
            if rank == quitter {
                prop_assert!(done.is_none());
                continue;
            }
            let Some((round, error)) = done else {
                return Err(TestCaseError::fail(format!("rank {rank} noticed nothing")));
            };
            prop_assert_eq!(round, at);
            let named = match error {
                CommError::PeerFailed { rank, .. } if panics => rank,
                CommError::PeerReturned { rank, .. } if !panics => rank,
                other => return Err(TestCaseError::fail(other.to_string())),
            };
            prop_assert_eq!(named.index(), quitter);
        }
    }

    /// Ranks that each make calls of their own choice: the group completes exactly if the model
    /// says so, and ends with an error otherwise.
    #[test]
    fn any_programs_end(programs in programs()) {
        let fit = all_complete(&programs);
        let completed = watched(move || {
            ThreadGroup::run(programs.len(), |comm| {
                let program = &programs[comm.rank().index()];
                program.iter().try_for_each(|step| step.run(&comm, 0))
            })
            .is_ok()
        });
        prop_assert_eq!(completed, fit);
    }
}

/// One program for all ranks, with a few steps put in on single ranks.
fn programs() -> impl Strategy<Value = Vec<Vec<Step>>> {
    let step = || prop::sample::select(&STEPS[..]);
    let common = (1usize..=6, prop::collection::vec(step(), 0..8));
    let extra = (
        any::<prop::sample::Index>(),
        any::<prop::sample::Index>(),
        step(),
    );
    (common, prop::collection::vec(extra, 0..3)).prop_map(|((size, common), extras)| {
        let mut programs = vec![common; size];
        for (rank, place, step) in extras {
            let program = &mut programs[rank.index(size)];
            program.insert(place.index(program.len() + 1), step);
        }
        programs
    })
}

/// Plays the programs, one step of one rank at a time, until all are through or none can go on.
fn all_complete(programs: &[Vec<Step>]) -> bool {
    let size = programs.len();
    let mut next = vec![0; size];
    let mut sent = vec![0; size]; // steps of each rank whose message, if any, has been sent
    let mut inbox = vec![0; size]; // each rank receives from one other only
    loop {
        let before = next.clone();
        let at = |next: &[usize], rank: usize| programs[rank].get(next[rank]).copied();
        for rank in 0..size {
            if at(&next, rank) == Some(Step::Ring) {
                if sent[rank] == next[rank] {
                    inbox[(rank + size - 1) % size] += 1;
                    sent[rank] += 1;
                }
                if inbox[rank] > 0 {
                    inbox[rank] -= 1;
                    next[rank] += 1;
                }
            }
        }
        let first = at(&next, 0);
        if first.is_some_and(|step| step != Step::Ring)
            && (0..size).all(|rank| at(&next, rank) == first)
        {
            next.iter_mut().for_each(|n| *n += 1);
        }
        for rank in 0..size {
            // A step that sends nothing counts as sent once it is done.
            sent[rank] = sent[rank].max(next[rank]);
        }
        if next == before {
            return (0..size).all(|rank| at(&next, rank).is_none());
        }
    }
}
