//! Turns a hang into a failed test.

use std::panic::resume_unwind;
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

/// Far beyond what any test needs, even on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs `test` on a thread and fails if it does not end. The thread of a test that hangs is left
/// behind; it ends with the process.
pub(crate) fn watched<T: Send + 'static>(test: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, wait) = channel();
    let thread = thread::spawn(move || {
        let value = test();
        // The receiver is gone only if the watchdog has given up.
        done.send(value).ok();
    });
    match wait.recv_timeout(PATIENCE) {
        Ok(value) => value,
        Err(RecvTimeoutError::Timeout) => panic!("the test hangs"),
        Err(RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => resume_unwind(panic),
            Ok(()) => panic!("the test ended without a value"),
        },
    }
}
