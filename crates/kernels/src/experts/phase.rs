//! Steps that all threads take together.

use std::hint;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

/// Looks at a counter before a waiting thread lets others run.
const SPINS: usize = 200;

/// The tasks of a step. Threads take them in order, one by one; a thread that comes late finds the
/// others further on, so that no number of threads is waited for.
#[derive(Debug)]
pub(super) struct Phase {
    /// For each part, the tasks up to its end.
    ends: Vec<usize>,
    next: AtomicUsize,
    done: AtomicUsize,
}

/// Task `index` of part `part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) part: usize,
    pub(super) index: usize,
}

impl Phase {
    /// # Arguments
    ///
    /// - `counts` - tasks of each part.
    pub(super) fn new(counts: impl Iterator<Item = usize>) -> Self {
        let ends = counts.scan(0_usize, |end, count| {
            *end += count;
            Some(*end)
        });
        Self {
            ends: ends.collect(),
            next: AtomicUsize::new(0),
            done: AtomicUsize::new(0),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    fn claim(&self) -> Option<Task> {
        let task = self.next.fetch_add(1, Ordering::Relaxed);
        let part = self.ends.partition_point(|&end| end <= task);
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        (part < self.ends.len()).then(|| Task {
            part,
            index: task - start,
        })
    }

    /// Does tasks until none is left, then waits for those of other threads: after it, everything
    /// that the step has written can be read. `work` gets a task and the one that comes after it.
    pub(super) fn run(&self, failed: &AtomicBool, mut work: impl FnMut(Task, Option<Task>)) {
        let mut current = self.claim();
        while let Some(task) = current {
            let next = self.claim();
            work(task, next);
            self.done.fetch_add(1, Ordering::Release);
            current = next;
        }
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < self.len() && !failed.load(Ordering::Relaxed) {
            spins += 1;
            if spins < SPINS {
                hint::spin_loop();
            } else {
                thread::yield_now();
            }
        }
    }
}

/// Tells the other threads, if this one panics, that its tasks will never be done.
pub(super) struct FailOnPanic<'a>(pub(super) &'a AtomicBool);

impl Drop for FailOnPanic<'_> {
    fn drop(&mut self) {
        if thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn every_task_is_done_once_and_before_the_next_step() {
        let counts = [3, 0, 5, 1, 0];
        let phases = [(); 3].map(|()| Phase::new(counts.into_iter()));
        let failed = AtomicBool::new(false);
        let log = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for (step, phase) in phases.iter().enumerate() {
                        phase.run(&failed, |task, _| log.lock().unwrap().push((step, task)));
                    }
                });
            }
        });
        let log = log.into_inner().unwrap();
        assert!(log.windows(2).all(|w| w[0].0 <= w[1].0));
        for step in 0..3 {
            let mut tasks: Vec<_> = log.iter().filter(|(s, _)| *s == step).collect();
            tasks.sort_unstable_by_key(|(_, t)| (t.part, t.index));
            let expected = (0..5).flat_map(|part| (0..counts[part]).map(move |i| (part, i)));
            assert!(tasks.iter().map(|(_, t)| (t.part, t.index)).eq(expected));
        }
    }

    #[test]
    fn nobody_waits_for_a_thread_that_failed() {
        let phase = Phase::new([2].into_iter());
        let failed = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let failing = scope.spawn(|| {
                let _guard = FailOnPanic(&failed);
                phase.run(&failed, |_, _| panic!("on purpose"));
            });
            failing.join()
        });
        assert!(result.is_err());
        phase.run(&failed, |_, _| {});
    }
}
