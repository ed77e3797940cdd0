use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::experts::Workspaces;
use crate::team::Team;
use crate::{Isa, KernelError};

/// More than machines have cores.
const MOST_THREADS: usize = 4096;

/// Runs the kernels of this crate, on the threads and the instruction set that it was given.
///
/// On one instruction set results do not depend on the number of threads, nor on which rows share
/// a batch. A kernel keeps the buffers that its largest batch needed, for the next one; clones
/// share them.
///
/// The default one has a thread per core, which all default kernels of a process share. Threads
/// look for the next call for a millisecond before they sleep, so that the layers of a model need
/// not wake them up.
#[derive(Clone, Debug, Default)]
pub struct CpuKernel {
    /// `None`: [`Team::global`].
    team: Option<Arc<Team>>,
    /// `None`: [`Isa::from_env`].
    isa: Option<Isa>,
    workspaces: Arc<Workspaces>,
}

impl CpuKernel {
    /// A kernel with threads of its own, which its clones share.
    ///
    /// # Errors
    ///
    /// If `threads` is 0, more than 4096, or the system does not give that many.
    pub fn with_threads(threads: usize) -> Result<Self, KernelError> {
        Self::with_team(threads, Team::new)
    }

    /// As [`CpuKernel::with_threads`], and each thread but the calling one keeps to a CPU of its own
    /// among those that the process may use, never to that on which the calling thread is at the
    /// time. So no two of them share a core, which the system lets happen when it wakes a thread. For
    /// a process that has its CPUs to itself: a bound thread cannot make way for those of others.
    ///
    /// # Errors
    ///
    /// As [`CpuKernel::with_threads`], and if the process may use fewer CPUs than `threads`, or the
    /// system is not Linux.
    pub fn with_bound_threads(threads: usize) -> Result<Self, KernelError> {
        Self::with_team(threads, Team::bound)
    }

    fn with_team(
        threads: usize,
        team: impl FnOnce(usize) -> io::Result<Team>,
    ) -> Result<Self, KernelError> {
        let error = |message: String| KernelError::Threads { threads, message };
        if !(1..=MOST_THREADS).contains(&threads) {
            return Err(error(format!("expected 1 to {MOST_THREADS}")));
        }
        let team = team(threads).map_err(|e| error(e.to_string()))?;
        Ok(Self {
            team: Some(Arc::new(team)),
            ..Self::default()
        })
    }

    /// The same on another instruction set than that of [`Isa::from_env`].
    ///
    /// # Errors
    ///
    /// If this machine lacks it.
    pub fn with_isa(mut self, isa: Isa) -> Result<Self, KernelError> {
        self.isa = Some(isa.checked()?);
        Ok(self)
    }

    /// The instruction set, which this machine has.
    ///
    /// # Errors
    ///
    /// If the environment names one that it lacks.
    pub fn isa(&self) -> Result<Isa, KernelError> {
        self.isa.map_or_else(Isa::from_env, Ok)
    }

    /// Threads that share the work, the calling one included.
    pub fn num_threads(&self) -> usize {
        self.team().len()
    }

    /// Runs `work` on each part. The calling thread begins at once, and does what no other one has
    /// come for. `work` must not call this again.
    pub(crate) fn spread<T: Send>(&self, parts: Vec<T>, work: impl Fn(T) + Sync) {
        let helpers = parts.len().saturating_sub(1);
        let parts = Mutex::new(parts.into_iter());
        let next = || parts.lock().unwrap_or_else(PoisonError::into_inner).next();
        self.team().run(helpers, &|| {
            while let Some(part) = next() {
                work(part);
            }
        });
    }

    pub(crate) fn team(&self) -> &Team {
        self.team.as_ref().unwrap_or_else(|| Team::global())
    }

    pub(crate) fn workspaces(&self) -> &Workspaces {
        &self.workspaces
    }
}
