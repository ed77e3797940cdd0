use std::sync::Arc;

use rayon::{Scope, ThreadPool, ThreadPoolBuilder};

use crate::experts::Workspaces;
use crate::{Isa, KernelError};

/// Runs the kernels of this crate, on the threads and the instruction set that it was given.
///
/// On one instruction set results do not depend on the number of threads, nor on which rows share
/// a batch. A kernel keeps the buffers that its largest batch needed, for the next one; clones
/// share them.
#[derive(Clone, Debug, Default)]
pub struct CpuKernel {
    /// `None`: the pool of the calling thread, by default rayon's global one.
    pool: Option<Arc<ThreadPool>>,
    /// `None`: [`Isa::from_env`].
    isa: Option<Isa>,
    workspaces: Arc<Workspaces>,
}

impl CpuKernel {
    /// A kernel with threads of its own, which its clones share.
    ///
    /// # Errors
    ///
    /// If `threads` is 0 or the system does not give that many.
    pub fn with_threads(threads: usize) -> Result<Self, KernelError> {
        let error = |message: String| KernelError::Threads { threads, message };
        if threads == 0 {
            return Err(error("at least 1 is needed".to_owned()));
        }
        let pool = ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("moekit-{i}"))
            .build()
            .map_err(|e| error(e.to_string()))?;
        Ok(Self {
            pool: Some(Arc::new(pool)),
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

    /// Threads that share the work.
    pub fn num_threads(&self) -> usize {
        match &self.pool {
            Some(pool) => pool.current_num_threads(),
            None => rayon::current_num_threads(),
        }
    }

    /// Runs `work`, and what it does in parallel, on the threads of this kernel.
    pub(crate) fn install<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        match &self.pool {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Runs `work` on each part, the first one on the calling thread at once: it need not wait for
    /// the others to wake up.
    pub(crate) fn spread<T: Send>(&self, parts: Vec<T>, work: impl Fn(T) + Sync) {
        let mut parts = parts.into_iter();
        let Some(own) = parts.next() else {
            return;
        };
        if parts.len() == 0 {
            return work(own);
        }
        match &self.pool {
            Some(pool) => pool.in_place_scope(|scope| {
                spawn(scope, parts, &work);
                work(own);
            }),
            None => rayon::in_place_scope(|scope| {
                spawn(scope, parts, &work);
                work(own);
            }),
        }
    }

    pub(crate) fn workspaces(&self) -> &Workspaces {
        &self.workspaces
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &Scope<'scope>,
    parts: impl Iterator<Item = T>,
    work: &'scope (impl Fn(T) + Sync),
) {
    for part in parts {
        scope.spawn(move |_| work(part));
    }
}
