//! Which CPUs the threads of a team run on.

use std::io;

#[cfg(target_os = "linux")]
use rustix::process::Pid;
#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, gettid, sched_getaffinity, sched_getcpu, sched_setaffinity};

/// A thread, as the system calls it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThreadId(#[cfg(target_os = "linux")] Pid);

impl ThreadId {
    /// That of the calling thread.
    pub(crate) fn current() -> Self {
        Self(
            #[cfg(target_os = "linux")]
            gettid(),
        )
    }
}

/// Keeps helpers away from the CPU of the calling thread.
///
/// The system may wake a helper on the core of its caller, when it takes the caller for one that is
/// about to sleep; the two then share that core until its next balancing, for longer than a layer
/// takes for a token. The calling thread, which is not ours, may run where it likes.
#[derive(Debug)]
pub(crate) struct Affinity {
    /// Where the calling thread was at the last call.
    #[cfg(target_os = "linux")]
    caller: usize,
    #[cfg(target_os = "linux")]
    helpers: Helpers,
}

#[cfg(target_os = "linux")]
#[derive(Debug)]
enum Helpers {
    /// Each keeps to a CPU of its own.
    Bound(Vec<(ThreadId, usize)>),
    /// Each may use all of these CPUs but that of the calling thread.
    Free(Vec<ThreadId>, CpuSet),
}

#[cfg(target_os = "linux")]
impl Affinity {
    /// # Errors
    ///
    /// If the calling thread may use fewer CPUs than there are threads, or the system refuses.
    pub(crate) fn bound(helpers: Vec<ThreadId>) -> io::Result<Self> {
        let (allowed, caller) = (sched_getaffinity(None)?, sched_getcpu());
        let cpus = (0..CpuSet::MAX_CPU).filter(|cpu| allowed.is_set(*cpu));
        let others: Vec<usize> = cpus.filter(|cpu| *cpu != caller).collect();
        if others.len() < helpers.len() {
            let message = format!("a CPU for each, of which there are {}", allowed.count());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        let helpers: Vec<_> = helpers.into_iter().zip(others).collect();
        for (helper, cpu) in &helpers {
            bind(*helper, *cpu)?;
        }
        let helpers = Helpers::Bound(helpers);
        Ok(Self { caller, helpers })
    }

    /// For helpers that may use the CPUs of the calling thread; `None` if those are too few for each
    /// thread to have one, or the system does not tell.
    pub(crate) fn free(helpers: Vec<ThreadId>) -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        let enough = (1..allowed.count() as usize).contains(&helpers.len());
        enough.then_some(Self {
            // Nowhere yet.
            caller: usize::MAX,
            helpers: Helpers::Free(helpers, allowed),
        })
    }

    /// Makes way for the calling thread: a bound helper on its CPU gets the one that it had before.
    pub(crate) fn make_way(&mut self) {
        let now = sched_getcpu();
        if now == self.caller {
            return;
        }
        // If the system refuses, helpers stay where they are: slower, and no less right.
        match &mut self.helpers {
            Helpers::Bound(helpers) => {
                let on_it = helpers.iter_mut().find(|(_, cpu)| *cpu == now);
                if let Some((helper, cpu)) = on_it
                    && bind(*helper, self.caller).is_ok()
                {
                    *cpu = self.caller;
                }
            }
            Helpers::Free(helpers, allowed) => {
                let mut others = *allowed;
                others.unset(now);
                for helper in helpers {
                    sched_setaffinity(Some(helper.0), &others).ok();
                }
            }
        }
        self.caller = now;
    }
}

#[cfg(target_os = "linux")]
fn bind(thread: ThreadId, cpu: usize) -> io::Result<()> {
    let mut only = CpuSet::new();
    only.set(cpu);
    Ok(sched_setaffinity(Some(thread.0), &only)?)
}

#[cfg(not(target_os = "linux"))]
impl Affinity {
    /// # Errors
    ///
    /// Always.
    pub(crate) fn bound(_: Vec<ThreadId>) -> io::Result<Self> {
        let message = "Linux, to bind threads to CPUs";
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }

    pub(crate) fn free(_: Vec<ThreadId>) -> Option<Self> {
        None
    }

    pub(crate) fn make_way(&mut self) {}
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    fn cpus() -> Vec<usize> {
        let allowed = sched_getaffinity(None).unwrap();
        let cpus = 0..CpuSet::MAX_CPU;
        cpus.filter(|cpu| allowed.is_set(*cpu)).collect()
    }

    /// Moves the calling thread about; `check` gets the CPUs of a helper that has made way for it.
    fn move_about(
        affinity: impl FnOnce(ThreadId) -> Option<Affinity>,
        check: impl Fn(usize, CpuSet),
    ) {
        let (sender, receiver) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let helper = thread::spawn(move || {
            sender.send(ThreadId::current()).unwrap();
            stopped.recv().ok();
        });
        let id = receiver.recv().unwrap();
        let cpus = cpus();
        match affinity(id) {
            Some(mut affinity) => {
                for cpu in [0, 1, 0].map(|i| cpus[i]) {
                    bind(ThreadId::current(), cpu).unwrap();
                    affinity.make_way();
                    check(cpu, sched_getaffinity(Some(id.0)).unwrap());
                }
            }
            None => assert!(cpus.len() < 2, "{cpus:?}"),
        }
        drop(stop);
        helper.join().unwrap();
    }

    #[test]
    fn a_bound_helper_makes_way_for_its_caller() {
        let bound = |id| Affinity::bound(vec![id]).ok();
        move_about(bound, |cpu, its| {
            assert!(its.count() == 1 && !its.is_set(cpu), "{its:?}");
        });
    }

    #[test]
    fn a_free_helper_may_run_anywhere_else() {
        let all = cpus().len();
        let free = |id| Affinity::free(vec![id]);
        move_about(free, |cpu, its| {
            assert!(
                its.count() as usize == all - 1 && !its.is_set(cpu),
                "{its:?}"
            );
        });
    }

    #[test]
    fn more_threads_than_cpus() {
        let too_many = vec![ThreadId::current(); CpuSet::MAX_CPU];
        let error = Affinity::bound(too_many.clone()).unwrap_err();
        assert!(error.to_string().contains("a CPU for each"), "{error}");
        assert!(Affinity::free(too_many).is_none());
    }
}
