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

/// Keeps each helper on a CPU of its own, none on that of the calling thread.
///
/// The system may wake a helper on the core of its caller, when it takes the caller for one that is
/// about to sleep; the two then share that core until its next balancing, for longer than a layer
/// takes for a token. The calling thread, which is not ours, may run where it likes.
#[derive(Debug)]
pub(crate) struct Affinity {
    /// Where the calling thread was at the last call.
    caller: usize,
    helpers: Vec<(ThreadId, usize)>,
}

#[cfg(target_os = "linux")]
impl Affinity {
    /// # Errors
    ///
    /// If the calling thread may use fewer CPUs than there are threads, or the system refuses.
    pub(crate) fn new(helpers: Vec<ThreadId>) -> io::Result<Self> {
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
        Ok(Self { caller, helpers })
    }

    /// Makes way for the calling thread: a helper on its CPU gets the one that it had before.
    pub(crate) fn make_way(&mut self) {
        let now = sched_getcpu();
        if now == self.caller {
            return;
        }
        let on_it = self.helpers.iter_mut().find(|(_, cpu)| *cpu == now);
        if let Some((helper, cpu)) = on_it
            && bind(*helper, self.caller).is_ok()
        {
            *cpu = self.caller;
        }
        // If the system has refused, the helper stays: slower, and no less right.
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
    pub(crate) fn new(_: Vec<ThreadId>) -> io::Result<Self> {
        let message = "Linux, to bind threads to CPUs";
        Err(io::Error::new(io::ErrorKind::Unsupported, message))
    }

    pub(crate) fn make_way(&mut self) {}
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::sync::mpsc;
    use std::thread;

    use super::*;

    #[test]
    fn a_helper_makes_way_for_its_caller() {
        let (sender, receiver) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let helper = thread::spawn(move || {
            sender.send(ThreadId::current()).unwrap();
            stopped.recv().ok();
        });
        let id = receiver.recv().unwrap();
        let allowed = sched_getaffinity(None).unwrap();
        let cpus: Vec<usize> = (0..CpuSet::MAX_CPU)
            .filter(|cpu| allowed.is_set(*cpu))
            .collect();
        match Affinity::new(vec![id]) {
            Ok(mut affinity) => {
                for cpu in [0, 1, 0].map(|i| cpus[i]) {
                    bind(ThreadId::current(), cpu).unwrap();
                    affinity.make_way();
                    let its = sched_getaffinity(Some(id.0)).unwrap();
                    assert!(its.count() == 1 && !its.is_set(cpu), "{its:?}");
                }
            }
            Err(error) => assert!(cpus.len() < 2, "{error}"),
        }
        drop(stop);
        helper.join().unwrap();
    }

    #[test]
    fn more_threads_than_cpus_are_refused() {
        let error = Affinity::new(vec![ThreadId::current(); CpuSet::MAX_CPU]).unwrap_err();
        assert!(error.to_string().contains("a CPU for each"), "{error}");
    }
}
