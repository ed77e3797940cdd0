//! The ranks of a live run as threads of this process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;
use std::time::{Duration, Instant};

use moekit::live::LiveError;
use moekit::parallel::{ThreadMember, ThreadWorld};

use super::drive::{Growth, Setup, take_part};
use super::record::{RankStep, Recorder, Summary};
use super::show::Show;
use crate::error::{CliError, Result};

/// How often the dashboard is drawn.
const FRAME: Duration = Duration::from_millis(100);

/// A rank's word to the one who watches.
enum Message {
    Step(Box<RankStep>),
    /// The rank ends, by an error if there is one.
    End(Result<(), LiveError>),
}

/// Starts the ranks, lets newcomers in as the group is to grow, and shows what they say.
pub(super) fn watch(setup: &Arc<Setup>, ranks: usize, mut show: Show) -> Result<Summary> {
    let world = ThreadWorld::new(ranks);
    let (send, messages) = channel();
    let mut running = 0;
    for _ in 0..ranks {
        spawn(setup, &world, &send)?;
        running += 1;
    }
    let mut recorder = Recorder::new(setup.check.is_some());
    let mut failed = None;
    let mut growth = Growth::default();
    let mut drawn = Instant::now();
    while running > 0 {
        match messages.recv_timeout(FRAME).ok() {
            Some(Message::Step(report)) => {
                // Ranks beyond the wanted number leave by themselves; those that are missing come.
                let missing = match report.rank {
                    0 => growth.missing(setup, &report),
                    _ => 0,
                };
                for _ in 0..missing {
                    spawn(setup, &world, &send)?;
                    running += 1;
                }
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
        Some(error) => Err(error.into()),
        None => Ok(recorder.summary()),
    }
}

fn spawn(setup: &Arc<Setup>, world: &ThreadWorld, messages: &Sender<Message>) -> Result<()> {
    let (setup, member, messages) = (setup.clone(), world.enter(), messages.clone());
    Builder::new()
        .name(format!("member {}", member.id()))
        .spawn(move || run(&setup, member, &messages))
        .map_err(|e| CliError::usage(format!("the system gives no thread for a rank: {e}")))?;
    Ok(())
}

/// Runs one rank until all steps are done or it leaves.
fn run(setup: &Setup, member: ThreadMember, messages: &Sender<Message>) {
    // Nobody listens any more if the run has ended.
    let tell = |report| messages.send(Message::Step(Box::new(report))).ok();
    // After a panic nothing of the rank is used but that it has ended.
    let result = catch_unwind(AssertUnwindSafe(|| {
        take_part(setup, member, |report| {
            tell(report);
            Ok(())
        })
    }));
    let result = result.unwrap_or_else(|_| {
        Err(LiveError::Config(
            "a rank panicked, see its message above".to_owned(),
        ))
    });
    messages.send(Message::End(result)).ok();
}
