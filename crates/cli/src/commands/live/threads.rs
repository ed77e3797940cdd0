//! The ranks of a live run as threads of this process.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::Builder;

use moekit::live::LiveError;
use moekit::parallel::{ThreadMember, ThreadWorld};

use super::drive::{News, Setup, take_part};
use super::record::Summary;
use super::show::Show;
use super::watch::{Message, Watched, watch};
use crate::error::{CliError, Result};

/// Starts the ranks and shows what they say.
pub(super) fn run(setup: &Arc<Setup>, ranks: usize, show: Show) -> Result<Summary> {
    let world = ThreadWorld::new(ranks);
    let (send, messages) = channel();
    for _ in 0..ranks {
        spawn(setup, &world, &send)?;
    }
    // From now on the ranks alone have an end of the channel.
    drop(send);
    let watched = Watched {
        setup,
        messages,
        end: &|| {},
    };
    watch(watched, show)
}

fn spawn(
    setup: &Arc<Setup>,
    world: &ThreadWorld,
    messages: &Sender<Message>,
) -> Result<(), LiveError> {
    let member = world.enter();
    let (setup, world, messages) = (setup.clone(), world.clone(), messages.clone());
    Builder::new()
        .name(format!("member {}", member.id()))
        .spawn(move || rank(&setup, &world, member, &messages))
        .map_err(|e| LiveError::Config(format!("the system gives no thread for a rank: {e}")))?;
    Ok(())
}

/// Runs one rank until all steps are done or it leaves. As rank 0 it lets others come when the group
/// is to grow; ranks beyond the wanted number leave by themselves.
fn rank(setup: &Arc<Setup>, world: &ThreadWorld, member: ThreadMember, messages: &Sender<Message>) {
    let grow = |missing| {
        for _ in 0..missing {
            spawn(setup, world, messages)?;
        }
        if setup.synchronous {
            world.wait_for_newcomers();
        }
        Ok(missing)
    };
    let tell = |news| {
        if let News::Step(report) = news {
            // Nobody listens any more if the run has ended.
            messages.send(Message::Step(report)).ok();
        }
        Ok(())
    };
    // After a panic nothing of the rank is used but that it has ended.
    let result = catch_unwind(AssertUnwindSafe(|| take_part(setup, member, grow, tell)));
    let result = result.unwrap_or_else(|_| {
        Err(LiveError::Config(
            "a rank panicked, see its message above".to_owned(),
        ))
    });
    let end = Message::End(result.map_err(CliError::from));
    messages.send(end).ok();
}
