//! Work beside the forward passes that nobody waits for.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvError, TryRecvError, channel};
use std::thread;

/// Planners, and reads, that never returned, at most: each holds a thread.
pub(crate) const MAX_ABANDONED: usize = 8;

/// A closure on a thread of its own. Whoever drops it forgets the thread, which ends by itself.
#[derive(Debug)]
pub(crate) struct Task<T> {
    result: Receiver<Result<T, String>>,
    what: &'static str,
    /// The step in which it began.
    pub(crate) since: u64,
}

impl<T: Send + 'static> Task<T> {
    /// Starts the work.
    ///
    /// # Errors
    ///
    /// If the system gives no thread.
    pub(crate) fn spawn(
        what: &'static str,
        step: u64,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<Self, String> {
        let (send, result) = channel();
        let body = move || {
            // After a panic nothing of the work is used but its message.
            let value = catch_unwind(AssertUnwindSafe(work));
            let value = value.map_err(|panic| format!("{what} panicked: {}", text(&*panic)));
            // Nobody listens any more if the task was given up.
            send.send(value).ok();
        };
        thread::Builder::new()
            .name(what.to_owned())
            .spawn(body)
            .map_err(|error| format!("{what}: the system gives no thread: {error}"))?;
        Ok(Self {
            result,
            what,
            since: step,
        })
    }

    /// What came of the work, `None` while it is not done. After that the task is used up.
    ///
    /// # Arguments
    ///
    /// - `wait` - whether to wait for it.
    pub(crate) fn poll(&self, wait: bool) -> Option<Result<T, String>> {
        let gone = || Some(Err(format!("{} ended without a result", self.what)));
        if wait {
            return match self.result.recv() {
                Ok(result) => Some(result),
                Err(RecvError) => gone(),
            };
        }
        match self.result.try_recv() {
            Ok(result) => Some(result),
            Err(TryRecvError::Empty) => None,
            Err(TryRecvError::Disconnected) => gone(),
        }
    }
}

/// What a panic said.
fn text(panic: &(dyn Any + Send)) -> String {
    let message = panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied());
    message.unwrap_or("(a value without a text)").to_owned()
}

#[cfg(test)]
mod tests {
    use std::panic::resume_unwind;

    use super::*;

    #[test]
    fn values_and_panics_come_back() {
        let task = Task::spawn("adding", 3, || 1 + 1).unwrap();
        assert_eq!((task.poll(true), task.since), (Some(Ok(2)), 3));
        let task = Task::spawn("planning", 0, || -> u8 {
            resume_unwind(Box::new("no plan"))
        });
        let error = task.unwrap().poll(true);
        assert_eq!(error, Some(Err("planning panicked: no plan".to_owned())));
    }

    #[test]
    fn who_polls_does_not_wait() {
        let (finish, finished) = channel::<()>();
        let task = Task::spawn("waiting", 0, move || finished.recv().is_ok()).unwrap();
        assert_eq!(task.poll(false), None);
        finish.send(()).unwrap();
        assert_eq!(task.poll(true), Some(Ok(true)));
    }
}
