use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::CpuKernel;
use crate::team::wait;

/// The threads of a kernel, all at once.
#[derive(Debug)]
pub(super) struct Team {
    kernel: CpuKernel,
}

impl Team {
    pub(super) fn new(kernel: &CpuKernel) -> Self {
        Self {
            kernel: kernel.clone(),
        }
    }

    /// Runs `work(member, members)` on every thread. All begin together, when the last one is
    /// awake.
    pub(super) fn run<T: Send>(&self, work: impl Fn(usize, usize) -> T + Sync) -> Vec<T> {
        let members = self.kernel.num_threads();
        let (arrived, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
        let lock = || results.lock().unwrap_or_else(PoisonError::into_inner);
        self.kernel.team().run(members - 1, &|| {
            let member = arrived.fetch_add(1, Ordering::AcqRel);
            wait(None, || arrived.load(Ordering::Acquire) == members);
            let result = work(member, members);
            lock().push(result);
        });
        results.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_is_there_when_the_first_begins() {
        let team = Team::new(&CpuKernel::with_threads(5).unwrap());
        let begun = AtomicUsize::new(0);
        let mut members = team.run(|member, members| {
            begun.fetch_add(1, Ordering::AcqRel);
            (member, members)
        });
        members.sort_unstable();
        assert_eq!(members, [(0, 5), (1, 5), (2, 5), (3, 5), (4, 5)]);
        assert_eq!(begun.into_inner(), 5);
    }
}
