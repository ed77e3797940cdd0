//! Steps that all threads take together.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::team::wait;

/// The units of a step. Each thread has a run of them, so that it reads memory in order, and takes
/// from those of others when its own is done; a thread that comes late finds the others further on,
/// so that no number of threads is waited for.
///
/// A task is several units, and fewer towards the end of a run, so that the threads end at the same
/// time (guided self-scheduling, Polychronopoulos and Kuck 1987).
#[derive(Debug)]
pub(super) struct Phase {
    parts: Vec<Part>,
    /// For each thread, the next unit of its run.
    next: Vec<Counter>,
    done: Counter,
}

#[derive(Clone, Copy, Debug)]
struct Part {
    /// Units of this part and those before.
    end: usize,
    /// Units that a task may have.
    most: usize,
}

/// Shares its cache line with no other one, without the cost of aligned memory.
#[derive(Debug, Default)]
struct Counter {
    count: AtomicUsize,
    _line: [usize; 7],
}

/// Some units of a part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) part: usize,
    pub(super) units: Range<usize>,
}

impl Phase {
    /// # Arguments
    ///
    /// - `parts` - the units of each part, and how many of them a task may have.
    /// - `members` - threads that have a run of them.
    pub(super) fn new(parts: impl Iterator<Item = (usize, usize)>, members: usize) -> Self {
        let parts = parts.scan(0_usize, |end, (units, most)| {
            *end += units;
            Some(Part { end: *end, most })
        });
        let mut phase = Self {
            parts: parts.collect(),
            next: Vec::new(),
            done: Counter::default(),
        };
        phase.next.resize_with(members.max(1), Counter::default);
        for member in 0..members {
            *phase.next[member].count.get_mut() = phase.edge(member);
        }
        phase
    }

    pub(super) fn len(&self) -> usize {
        self.parts.last().map_or(0, |part| part.end)
    }

    /// The first unit of the run of a thread.
    fn edge(&self, member: usize) -> usize {
        self.len() * member / self.next.len()
    }

    /// The task that a thread will take next of its own run, unless another one does.
    pub(super) fn next(&self, member: usize) -> Option<Task> {
        self.task(self.next[member].count.load(Ordering::Relaxed), member)
    }

    fn claim(&self, member: usize) -> Option<Task> {
        let members = self.next.len();
        (member..members).chain(0..member).find_map(|of| {
            let mut claimed = None;
            let next = &self.next[of].count;
            let _ends = next.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |unit| {
                claimed = self.task(unit, of);
                claimed.as_ref().map(|task| unit + task.units.len())
            });
            claimed
        })
    }

    /// The task that begins with a unit, by its place among all, of the run of a thread.
    fn task(&self, unit: usize, member: usize) -> Option<Task> {
        let left = self.edge(member + 1).saturating_sub(unit);
        if left == 0 {
            return None;
        }
        let part = self.parts.partition_point(|part| part.end <= unit);
        let start = part.checked_sub(1).map_or(0, |part| self.parts[part].end);
        let Part { end, most } = self.parts[part];
        let len = (left / 2).clamp(1, most).min(end - unit);
        let first = unit - start;
        Some(Task {
            part,
            units: first..first + len,
        })
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
            let units = task.units.len();
            work(task, self.next(member));
            self.done.count.fetch_add(units, Ordering::Release);
        }
        let all_done = || self.done.count.load(Ordering::Acquire) >= self.len();
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
    fn every_unit_is_done_once_and_before_the_next_step() {
        let counts = [(3, 1), (0, 1), (25, 4), (1, 2), (0, 4)];
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
            let tasks = log.iter().filter(|(s, _)| *s == step).map(|(_, task)| task);
            assert!(tasks.clone().all(|t| t.units.len() <= counts[t.part].1));
            let units = |t: &Task| t.units.clone().map(|unit| (t.part, unit)).collect();
            let mut done: Vec<_> = tasks.flat_map::<Vec<_>, _>(units).collect();
            done.sort_unstable();
            let expected = (0..5).flat_map(|part| (0..counts[part].0).map(move |i| (part, i)));
            assert!(done.into_iter().eq(expected));
        }
    }

    #[test]
    fn tasks_are_smaller_at_the_end_of_a_run() {
        let phase = Phase::new([(6, 4), (13, 4)].into_iter(), 1);
        let lens: Vec<_> = std::iter::from_fn(|| phase.claim(0))
            .map(|task| (task.part, task.units.len()))
            .collect();
        assert_eq!(
            lens,
            [
                (0, 4),
                (0, 2),
                (1, 4),
                (1, 4),
                (1, 2),
                (1, 1),
                (1, 1),
                (1, 1)
            ]
        );
    }

    #[test]
    fn nobody_waits_for_a_thread_that_failed() {
        let phase = Phase::new([(2, 1)].into_iter(), 1);
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
