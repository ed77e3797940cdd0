mod agreement;
mod collectives;
mod failures;
mod soak;
mod subgroups;

#[path = "../../../tests/suite/steps.rs"]
mod steps;

use self::steps::{STEPS, Step};
use crate::watchdog::watched;
use crate::{CommError, ThreadCommunicator, ThreadGroup};

const SIZES: [usize; 5] = [1, 2, 3, 5, 8];

/// Runs ranks that deal with their errors themselves; a hang fails the test.
fn on_ranks<T: Send + 'static>(
    size: usize,
    body: impl Fn(ThreadCommunicator) -> T + Send + Sync + 'static,
) -> Vec<T> {
    watched(move || ThreadGroup::run(size, |comm| Ok::<T, CommError>(body(comm))).unwrap())
}
