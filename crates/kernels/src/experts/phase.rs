//! Steps that all threads take together.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::team::wait;

/// The tasks of a step. Each thread has a run of them, so that it reads memory in order, and takes
/// from those of others when its own is done; a thread that comes late finds the others further on,
/// so that no number of threads is waited for.
#[derive(Debug)]
pub(super) struct Phase {
    /// For each part, the tasks up to its end.
    ends: Vec<usize>,
    /// For each thread, the next task of its run.
    next: Vec<Counter>,
    done: Counter,
}

/// Has its cache line to itself.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Counter(AtomicUsize);

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
    /// - `members` - threads that have a run of them.
    pub(super) fn new(counts: impl Iterator<Item = usize>, members: usize) -> Self {
        let ends = counts.scan(0_usize, |end, count| {
            *end += count;
            Some(*end)
        });
        let mut phase = Self {
            ends: ends.collect(),
            next: Vec::new(),
            done: Counter::default(),
        };
        phase.next.resize_with(members.max(1), Counter::default);
        for member in 0..members {
            *phase.next[member].0.get_mut() = phase.edge(member);
        }
        phase
    }

    pub(super) fn len(&self) -> usize {
        self.ends.last().copied().unwrap_or(0)
    }

    /// The first task of the run of a thread.
    fn edge(&self, member: usize) -> usize {
        self.len() * member / self.next.len()
    }

    /// The task that a thread will take next of its own run, unless another one does.
    pub(super) fn next(&self, member: usize) -> Option<Task> {
        let next = self.next[member].0.load(Ordering::Relaxed);
        (next < self.edge(member + 1)).then(|| self.task(next))
    }

    fn claim(&self, member: usize) -> Option<Task> {
        let members = self.next.len();
        (member..members).chain(0..member).find_map(|of| {
            self.next(of)?;
            let task = self.next[of].0.fetch_add(1, Ordering::Relaxed);
            (task < self.edge(of + 1)).then(|| self.task(task))
        })
    }

    /// A task by its place among all.
    fn task(&self, task: usize) -> Task {
        let part = self.ends.partition_point(|&end| end <= task);
        let start = part.checked_sub(1).map_or(0, |before| self.ends[before]);
        Task {
            part,
            index: task - start,
        }
    }

    /// Does tasks until none is left, then waits for those of other threads. Tells whether all are
    /// done: everything that the step has written can be read then, but not if a thread failed.
    /// `work` gets a task and the one that probably comes after it.
    #[must_use]
    pub(super) fn run(
        &self,
        member: usize,
        failed: &AtomicBool,
        mut work: impl FnMut(Task, Option<Task>),
    ) -> bool {
        while let Some(task) = self.claim(member) {
            work(task, self.next(member));
            self.done.0.fetch_add(1, Ordering::Release);
        }
        let all_done = || self.done.0.load(Ordering::Acquire) >= self.len();
        wait(None, || all_done() || failed.load(Ordering::Relaxed));
        all_done()
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
        let phases = [(); 3].map(|()| Phase::new(counts.into_iter(), 3));
        let failed = AtomicBool::new(false);
        let log = Mutex::new(Vec::new());
        thread::scope(|scope| {
            // The fourth run has no thread of its own, and two threads have the same one.
            for member in [0, 1, 2, 2] {
                let (phases, failed, log) = (&phases, &failed, &log);
                scope.spawn(move || {
                    for (step, phase) in phases.iter().enumerate() {
                        assert!(phase.run(member, failed, |task, _| {
                            log.lock().unwrap().push((step, task));
                        }));
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
        let phase = Phase::new([2].into_iter(), 1);
        let failed = AtomicBool::new(false);
        let result = thread::scope(|scope| {
            let failing = scope.spawn(|| {
                let _guard = FailOnPanic(&failed);
                let _done = phase.run(0, &failed, |_, _| panic!("on purpose"));
            });
            failing.join()
        });
        assert!(result.is_err());
        assert!(!phase.run(0, &failed, |_, _| {}), "a task was never done");
    }
}
