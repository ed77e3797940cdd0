//! The one who watches the ranks of a live run, and shows what they say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use super::drive::Setup;
use super::record::{RankStep, Recorder, Summary};
use super::show::Show;
use crate::error::{CliError, Result};

/// How often the dashboard is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// A rank's word to the one who watches.
pub(super) enum Message {
    Step(Box<RankStep>),
    /// The rank ends, by an error if there is one.
    End(Result<(), CliError>),
}

/// The ranks that are watched.
pub(super) struct Watched<'a> {
    pub(super) setup: &'a Arc<Setup>,
    /// Each holds the other end until it has ended.
    pub(super) messages: Receiver<Message>,
    /// Ends them, when that is wanted and they do not see it by themselves.
    pub(super) end: &'a dyn Fn(),
}

/// Shows what the ranks say until all have ended.
///
/// # Errors
///
/// The first of a rank.
pub(super) fn watch(watched: Watched<'_>, mut show: Show) -> Result<Summary> {
    let Watched {
        setup,
        messages,
        end,
    } = watched;
    let mut recorder = Recorder::new(setup.check.is_some());
    let mut failed = None;
    let mut drawn = Instant::now();
    loop {
        match messages.recv_timeout(FRAME) {
            Ok(Message::Step(report)) => show.steps(recorder.push(*report))?,
            Ok(Message::End(Ok(()))) | Err(RecvTimeoutError::Timeout) => {}
            Ok(Message::End(Err(error))) => {
                setup.stop.store(true, Ordering::Relaxed);
                failed = failed.or(Some(error));
            }
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if setup.stop.load(Ordering::Relaxed) {
            end();
        }
        if drawn.elapsed() >= FRAME {
            drawn = Instant::now();
        } else {
            continue;
        }
        if show.draw()? {
            setup.stop.store(true, Ordering::Relaxed);
        }
    }
    drop(show);
    match failed {
        Some(error) => Err(error),
        None => Ok(recorder.summary()),
    }
}
