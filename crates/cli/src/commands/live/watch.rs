//! The one who watches the ranks of a live run, and shows what they say.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::Receiver;
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
    /// How many there are.
    pub(super) running: usize,
    pub(super) messages: Receiver<Message>,
    /// Ends them, when that is wanted and they do not see it by themselves.
    pub(super) end: &'a dyn Fn(),
}

/// Shows what the ranks say until all have ended.
///
/// # Arguments
///
/// - `follow` - sees to what a report asks for; how many ranks have come by that.
///
/// # Errors
///
/// The first of a rank.
pub(super) fn watch(
    watched: Watched<'_>,
    mut show: Show,
    mut follow: impl FnMut(&RankStep) -> Result<usize>,
) -> Result<Summary> {
    let Watched {
        setup,
        mut running,
        messages,
        end,
    } = watched;
    let mut recorder = Recorder::new(setup.check.is_some());
    let mut failed = None;
    let mut drawn = Instant::now();
    while running > 0 {
        match messages.recv_timeout(FRAME).ok() {
            Some(Message::Step(report)) => {
                running += follow(&report)?;
                show.steps(recorder.push(*report))?;
            }
            Some(Message::End(result)) => {
                running -= 1;
                if let Err(error) = result {
                    setup.stop.store(true, Ordering::Relaxed);
                    failed = failed.or(Some(error));
                }
            }
            None => {}
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
