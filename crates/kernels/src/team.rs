//! Threads that work on a call together.
#![allow(
    unsafe_code,
    reason = "threads that outlive the work that they are lent"
)]

use std::any::Any;
use std::mem::transmute;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{hint, io};

use crate::affinity::{Affinity, ThreadId};

/// How long a helper without work looks for some before it sleeps: about as long as from one layer
/// to the next. Waking up takes some 50 microseconds, and on a virtual machine at times
/// milliseconds: the system takes a core that the host has stopped for a busy one, and puts the
/// thread behind the one that wakes it.
const LINGER: Duration = Duration::from_millis(1);
/// Looks at a counter before a waiting thread lets others run.
const SPINS: usize = 64;

type Work<'a> = &'a (dyn Fn() + Sync);

/// A caller's helpers. They wait actively for a moment after each call, as those of OpenMP do.
pub(crate) struct Team {
    helpers: Vec<JoinHandle<()>>,
    shared: Arc<Shared>,
    /// Held by the one whose call it is.
    turn: Mutex<Option<Affinity>>,
}

#[derive(Default)]
struct Shared {
    /// Counts calls. Changes under the lock of `state`.
    calls: AtomicUsize,
    /// Helpers that are at work. Grows under the lock of `state`.
    running: AtomicUsize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    call: Option<Call>,
    panic: Option<Box<dyn Any + Send>>,
    closed: bool,
}

#[derive(Clone, Copy)]
struct Call {
    work: Work<'static>,
    /// How many helpers may join.
    helpers: usize,
}

impl Team {
    /// # Errors
    ///
    /// If the system does not give that many threads.
    ///
    /// # Arguments
    ///
    /// - `threads` - those that work on a call, the calling one included.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let (team, helpers) = Self::start(threads)?;
        Ok(team.placed(Affinity::free(helpers)))
    }

    /// One whose helpers each keep to a CPU of their own.
    ///
    /// # Errors
    ///
    /// As [`Team::new`], or if there are fewer CPUs than threads.
    pub(crate) fn bound(threads: usize) -> io::Result<Self> {
        let (team, helpers) = Self::start(threads)?;
        Ok(team.placed(Some(Affinity::bound(helpers)?)))
    }

    fn placed(mut self, affinity: Option<Affinity>) -> Self {
        *self.turn.get_mut().unwrap_or_else(PoisonError::into_inner) = affinity;
        self
    }

    fn start(threads: usize) -> io::Result<(Self, Vec<ThreadId>)> {
        let mut team = Self::alone();
        let (sender, ids) = mpsc::channel();
        for index in 0..threads.saturating_sub(1) {
            let (shared, sender) = (Arc::clone(&team.shared), sender.clone());
            let thread = thread::Builder::new().name(format!("moekit-{index}"));
            team.helpers.push(thread.spawn(move || {
                sender.send(ThreadId::current()).ok();
                drop(sender);
                shared.help(index);
            })?);
        }
        drop(sender);
        Ok((team, ids.iter().collect()))
    }

    /// The team of those who have none of their own: a thread per core, or the calling thread
    /// alone where the system gives none.
    pub(crate) fn global() -> &'static Arc<Self> {
        static TEAM: OnceLock<Arc<Team>> = OnceLock::new();
        TEAM.get_or_init(|| {
            let threads = thread::available_parallelism().map_or(1, usize::from);
            Arc::new(Self::new(threads).unwrap_or_else(|_| Self::alone()))
        })
    }

    /// The calling thread.
    fn alone() -> Self {
        Self {
            helpers: Vec::new(),
            shared: Arc::default(),
            turn: Mutex::default(),
        }
    }

    /// Threads, the calling one included.
    pub(crate) fn len(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Does the work on the calling thread and on helpers, at most so many: those who come while
    /// the calling thread is at it. Nobody waits for one who is late. Calls of several threads are
    /// served one after the other; the work must not call again.
    pub(crate) fn run(&self, helpers: usize, work: Work<'_>) {
        let helpers = helpers.min(self.helpers.len());
        if helpers == 0 {
            return work();
        }
        let mut turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(affinity) = &mut *turn {
            affinity.make_way();
        }
        // SAFETY: `Withdraw` ends the call and waits for those at work, whether or not the work of
        // this thread panics, so that no one has the reference after this function.
        let lent = unsafe { transmute::<Work<'_>, Work<'static>>(work) };
        let withdraw = Withdraw(&self.shared);
        self.shared.publish(|state| {
            state.panic = None;
            state.call = Some(Call {
                work: lent,
                helpers,
            });
        });
        self.wake(helpers);
        work();
        drop(withdraw);
        let panic = self.shared.lock().panic.take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    fn wake(&self, helpers: usize) {
        // Asks the system for nothing where the helper is awake.
        let helpers = self.helpers[..helpers].iter();
        helpers.for_each(|helper| helper.thread().unpark());
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.publish(|state| state.closed = true);
        self.wake(self.helpers.len());
        for helper in self.helpers.drain(..) {
            // It has caught what panicked.
            helper.join().ok();
        }
    }
}

/// Ends a call.
struct Withdraw<'a>(&'a Shared);

impl Drop for Withdraw<'_> {
    fn drop(&mut self) {
        self.0.lock().call = None;
        wait(None, || self.0.running.load(Ordering::Acquire) == 0);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, change: impl FnOnce(&mut State)) {
        let mut state = self.lock();
        change(&mut state);
        self.calls.fetch_add(1, Ordering::Release);
    }

    /// What a helper does.
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            let news = || self.calls.load(Ordering::Acquire) != seen;
            while !wait(Some(LINGER), news) {
                // Returns at once if there has been a call since the last time.
                thread::park();
                if news() {
                    break;
                }
            }
            let state = self.lock();
            if state.closed {
                return;
            }
            seen = self.calls.load(Ordering::Relaxed);
            let Some(call) = state.call.filter(|call| index < call.helpers) else {
                continue;
            };
            self.running.fetch_add(1, Ordering::Relaxed);
            drop(state);
            if let Err(panic) = catch_unwind(AssertUnwindSafe(call.work)) {
                self.lock().panic.get_or_insert(panic);
            }
            self.running.fetch_sub(1, Ordering::Release);
        }
    }
}

/// Waits actively until something is so; tells whether it came to be before the time was over.
pub(crate) fn wait(limit: Option<Duration>, is_so: impl Fn() -> bool) -> bool {
    let begin = limit.map(|limit| (Instant::now(), limit));
    loop {
        for _ in 0..SPINS {
            if is_so() {
                return true;
            }
            hint::spin_loop();
        }
        if begin.is_some_and(|(begin, limit)| begin.elapsed() > limit) {
            return false;
        }
        thread::yield_now();
    }
}

impl std::fmt::Debug for Team {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "a team of {}", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helpers_come_while_the_caller_is_at_work() {
        let team = Team::new(4).unwrap();
        for helpers in [0, 1, 3, 9] {
            let (present, here) = (helpers.min(3) + 1, AtomicUsize::new(0));
            team.run(helpers, &|| {
                here.fetch_add(1, Ordering::AcqRel);
                wait(None, || here.load(Ordering::Acquire) == present);
            });
            assert_eq!(here.into_inner(), present);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn threads_with_a_cpu_each_work_as_others_do() {
        let cpus = thread::available_parallelism().unwrap().get();
        let team = Team::bound(cpus.min(2)).unwrap();
        for _ in 0..100 {
            let here = AtomicUsize::new(0);
            team.run(1, &|| {
                here.fetch_add(1, Ordering::AcqRel);
                wait(None, || here.load(Ordering::Acquire) == team.len());
            });
            assert_eq!(here.into_inner(), team.len());
        }
    }

    #[test]
    fn nothing_is_left_of_a_call() {
        let team = Team::new(3).unwrap();
        for round in 0..2000 {
            let counts = Mutex::new(vec![round]);
            team.run(2, &|| counts.lock().unwrap().push(round));
            let counts = counts.into_inner().unwrap();
            assert!((2..=4).contains(&counts.len()) && counts.iter().all(|c| *c == round));
        }
    }

    #[test]
    fn several_callers_take_turns() {
        let team = Team::new(3).unwrap();
        let total = AtomicUsize::new(0);
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let left = AtomicUsize::new(5);
                        team.run(2, &|| {
                            let take = |left: usize| left.checked_sub(1);
                            let order = Ordering::Relaxed;
                            while left.fetch_update(order, order, take).is_ok() {
                                total.fetch_add(1, order);
                            }
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 100 * 5);
    }

    #[test]
    fn a_panic_comes_out_of_the_call_and_the_team_lives_on() {
        let team = Team::new(2).unwrap();
        for panics_here in [false, true] {
            let caller = thread::current().id();
            let here = AtomicUsize::new(0);
            let result = catch_unwind(AssertUnwindSafe(|| {
                team.run(1, &|| {
                    here.fetch_add(1, Ordering::AcqRel);
                    wait(None, || here.load(Ordering::Acquire) == 2);
                    let is_caller = thread::current().id() == caller;
                    assert!(is_caller != panics_here, "on purpose");
                });
            }));
            assert!(result.is_err());
        }
        let here = AtomicUsize::new(0);
        team.run(1, &|| {
            here.fetch_add(1, Ordering::AcqRel);
            wait(None, || here.load(Ordering::Acquire) == 2);
        });
        assert_eq!(here.into_inner(), 2);
    }
}
