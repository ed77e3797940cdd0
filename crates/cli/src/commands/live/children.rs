//! The ranks of a live run as processes that this one starts and watches. When one is killed, the
//! others go on.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use serde::{Deserialize, Serialize};

use super::drive::{News, Setup};
use super::processes::Reports;
use super::record::{RankStep, Summary};
use super::show::Show;
use super::watch::{Message, Watched, watch};
use crate::commands::comm::start_ranks;
use crate::error::{CliError, Result};
use crate::output::note;

/// A line of a process to the one that has started it.
#[derive(Serialize, Deserialize)]
enum Line {
    Step(Box<RankStep>),
    /// It wants to be killed.
    Kill,
}

/// By lines to the process that has started this one.
pub(super) struct ToStarter;

impl Reports for ToStarter {
    fn push(&mut self, news: News) -> Result<()> {
        let line = match news {
            News::Step(report) => Line::Step(report),
            News::Lost => Line::Kill,
        };
        let text = serde_json::to_string(&line)
            .map_err(|e| CliError::usage(format!("a report does not serialize: {e}")))?;
        // Without the one that has started it, a process has nothing to do.
        writeln!(io::stdout(), "{text}").map_err(|e| CliError::file(Path::new("stdout"), e))?;
        if matches!(line, Line::Kill) {
            loop {
                thread::park();
            }
        }
        Ok(())
    }

    fn finish(self, _: &Setup) -> Result<()> {
        Ok(())
    }
}

/// Starts `processes` ranks and shows what they say.
pub(super) fn run(setup: &Arc<Setup>, processes: usize, show: Show) -> Result<Summary> {
    let (send, messages) = channel();
    let children: Vec<Shared> = start_ranks(processes, Stdio::piped)?
        .into_iter()
        .map(|child| Arc::new(Mutex::new(child)))
        .collect();
    let said = Arc::new(Mutex::new(String::new()));
    let readers: Vec<_> = children
        .iter()
        .map(|child| {
            let (child, send, said) = (child.clone(), send.clone(), said.clone());
            thread::spawn(move || follow(&child, &send, &said))
        })
        .collect();
    drop(send);
    let watched = Watched {
        setup,
        messages,
        end: &|| children.iter().for_each(kill),
    };
    let result = watch(watched, show);
    // They have ended, or nobody watches them any more.
    children.iter().for_each(kill);
    for reader in readers {
        // It has said what there was to say.
        reader.join().ok();
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner);
    note(&said);
    match result {
        // The one that has failed has said why.
        Err(_) if !said.is_empty() => std::process::exit(1),
        result => result,
    }
}

type Shared = Arc<Mutex<Child>>;

fn kill(child: &Shared) {
    // One that has ended already is what is wanted.
    let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
    child.kill().ok();
}

/// Passes on what a process says, to its end.
fn follow(child: &Shared, messages: &Sender<Message>, said: &Mutex<String>) {
    let pipes = {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        (child.stdout.take(), child.stderr.take())
    };
    let (Some(stdout), Some(mut stderr)) = pipes else {
        return;
    };
    let errors = thread::spawn(move || {
        let mut bytes = Vec::new();
        stderr.read_to_end(&mut bytes).ok();
        String::from_utf8_lossy(&bytes).into_owned()
    });
    for line in BufReader::new(stdout).lines().map_while(io::Result::ok) {
        match serde_json::from_str(&line) {
            // Nobody listens any more if the run has ended.
            Ok(Line::Step(report)) => drop(messages.send(Message::Step(report))),
            Ok(Line::Kill) => kill(child),
            // A line that was cut off as the process was killed.
            Err(_) => {}
        }
    }
    if let Ok(errors) = errors.join() {
        let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
        said.push_str(&errors);
    }
    let status = {
        let mut child = child.lock().unwrap_or_else(PoisonError::into_inner);
        child.wait()
    };
    let end = match status {
        Ok(status) => match status.code() {
            // Without a code it was killed, which the others survive.
            Some(0) | None => Ok(()),
            Some(code) => Err(CliError::usage(format!("a process has ended with {code}"))),
        },
        Err(e) => Err(CliError::usage(format!(
            "a process cannot be waited for: {e}"
        ))),
    };
    messages.send(Message::End(end)).ok();
}
