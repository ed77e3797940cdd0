//! The ranks of a live run as threads of this process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

use moekit::live::LiveError;
use moekit::parallel::{ThreadMember, ThreadWorld};

use super::drive::{Growth, News, Setup, take_part};
use super::record::Summary;
use super::show::Show;
use super::watch::{Message, Watched, watch};
use crate::error::{CliError, Result};

/// Starts the ranks, lets newcomers in as the group is to grow, and shows what they say.
pub(super) fn run(setup: &Arc<Setup>, ranks: usize, show: Show) -> Result<Summary> {
    let world = ThreadWorld::new(ranks);
    let (send, messages) = channel();
    for _ in 0..ranks {
        spawn(setup, &world, &send)?;
    }
    let mut growth = Growth::default();
    let watched = Watched {
        setup,
        running: ranks,
        messages,
        end: &|| {},
    };
    watch(watched, show, |report| {
        // Ranks beyond the wanted number leave by themselves; those that are missing come.
        let missing = match report.rank {
            0 => growth.missing(setup, report),
            _ => 0,
        };
        for _ in 0..missing {
            spawn(setup, &world, &send)?;
        }
        Ok(missing)
    })
}

fn spawn(setup: &Arc<Setup>, world: &ThreadWorld, messages: &Sender<Message>) -> Result<()> {
    let (setup, member, messages) = (setup.clone(), world.enter(), messages.clone());
    Builder::new()
        .name(format!("member {}", member.id()))
        .spawn(move || rank(&setup, member, &messages))
        .map_err(|e| CliError::usage(format!("the system gives no thread for a rank: {e}")))?;
    Ok(())
}

/// Runs one rank until all steps are done or it leaves.
fn rank(setup: &Setup, member: ThreadMember, messages: &Sender<Message>) {
    // After a panic nothing of the rank is used but that it has ended.
    let result = catch_unwind(AssertUnwindSafe(|| {
        take_part(setup, member, |news| {
            if let News::Step(report) = news {
                // Nobody listens any more if the run has ended.
                messages.send(Message::Step(report)).ok();
            }
            Ok(())
        })
    }));
    let result = result.unwrap_or_else(|_| {
        Err(LiveError::Config(
            "a rank panicked, see its message above".to_owned(),
        ))
    });
    let end = Message::End(result.map_err(CliError::from));
    messages.send(end).ok();
}
