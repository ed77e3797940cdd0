//! The suite of communicators, with ranks as threads.

#![allow(clippy::unwrap_used, reason = "a test fails where it would panic")]

mod suite;

use std::sync::Arc;

use moekit_parallel::{CommError, Communicator, ThreadGroup};

#[test]
fn every_scenario_on_every_size() {
    for size in [1, 2, 3, 4, 7] {
        for (name, scenario) in suite::SCENARIOS {
            ThreadGroup::run(size, |comm| {
                let comm: Arc<dyn Communicator> = Arc::new(comm);
                scenario(&comm);
                Ok::<_, CommError>(())
            })
            .unwrap_or_else(|error| panic!("{name}, {size} ranks: {error}"));
        }
    }
}
