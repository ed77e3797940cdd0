use std::sync::atomic::{AtomicUsize, Ordering};

use crate::CpuKernel;

/// Spins before a waiting thread lets others run, which are on its core if there are more threads
/// than cores.
const SPINS: usize = 1 << 14;

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
        let arrived = AtomicUsize::new(0);
        self.kernel.install(|| {
            rayon::broadcast(|context| {
                let members = context.num_threads();
                arrived.fetch_add(1, Ordering::AcqRel);
                let mut spins = 0;
                while arrived.load(Ordering::Acquire) < members {
                    spins += 1;
                    if spins < SPINS {
                        std::hint::spin_loop();
                    } else {
                        std::thread::yield_now();
                    }
                }
                work(context.index(), members)
            })
        })
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
