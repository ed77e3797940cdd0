//! The ranks of a live run as processes: those beyond the group wait as spares.

use std::collections::BTreeSet;
use std::sync::Arc;

use moekit::live::LiveError;
use moekit::parallel::{Buffer, Communicator, RankPool};
use moekit::routing::Rank;

use super::drive::{News, Setup, take_part};
use super::print_summary;
use super::record::{RankStep, Recorder};
use super::show::Show;
use super::verdict::verdict;
use crate::error::{CliError, Result};

/// The tag of reports to the first process.
const REPORT: u32 = 0;

/// The way of the news of a process.
pub(super) trait Reports {
    fn push(&mut self, news: News) -> Result<()>;

    /// What this process does for the others while it is a spare. Does not wait.
    fn receive(&mut self) -> Result<()> {
        Ok(())
    }

    /// This process has nothing more to tell.
    fn finish(self, setup: &Setup) -> Result<()>;
}

/// This process, from its first group to the end of the run.
///
/// # Arguments
///
/// - `ranks` - processes of the first group.
pub(super) fn run(
    setup: &Setup,
    ranks: usize,
    comm: &Arc<dyn Communicator>,
    mut reports: impl Reports,
) -> Result<()> {
    let pool = RankPool::new(comm.clone(), ranks);
    let mut is_wanted = comm.rank().index() < ranks;
    while is_wanted || pool.wait_for_invitation_while(|| reports.receive())? {
        is_wanted = false;
        let mut problem = None;
        let grow = |missing| {
            // Who has just left may not have told yet.
            let invited = pool.invite(missing)?;
            if setup.synchronous {
                pool.wait_for_newcomers(invited)?;
            }
            Ok(invited)
        };
        let tell = |news| {
            reports.push(news).map_err(|error| {
                let message = error.to_string();
                problem = Some(error);
                LiveError::Config(message)
            })
        };
        let result = take_part(setup, pool.enter(), grow, tell);
        result.map_err(|error| problem.unwrap_or_else(|| error.into()))?;
    }
    reports.finish(setup)
}

/// Over the communicator to the first process, which prints what all report.
pub(super) struct ToFirst<'a> {
    comm: &'a Arc<dyn Communicator>,
    recorder: Recorder,
    /// Processes that have nothing more to tell.
    ended: BTreeSet<Rank>,
}

impl<'a> ToFirst<'a> {
    pub(super) fn new(setup: &Setup, comm: &'a Arc<dyn Communicator>) -> Self {
        Self {
            comm,
            recorder: Recorder::new(setup.check.is_some()),
            ended: BTreeSet::new(),
        }
    }

    fn is_first(&self) -> bool {
        self.comm.rank().index() == 0
    }

    fn show(&mut self, report: RankStep) -> Result<()> {
        Show::lines().steps(self.recorder.push(report))
    }

    fn others(&self) -> impl Iterator<Item = Rank> + use<> {
        (1..self.comm.size()).map(Rank::new)
    }

    /// A report of another process, or its last word.
    fn hear(&mut self, rank: Rank, report: &Buffer) -> Result<()> {
        if report.is_empty() {
            self.ended.insert(rank);
            return Ok(());
        }
        self.show(read(report)?)
    }
}

impl Reports for ToFirst<'_> {
    fn push(&mut self, news: News) -> Result<()> {
        // One that is lost to the group waits as a spare.
        let News::Step(report) = news else {
            return Ok(());
        };
        if !self.is_first() {
            let bytes = serde_json::to_vec(&report).map_err(|error| unreadable(&error))?;
            return Ok(self.comm.send(Rank::new(0), REPORT, bytes.into())?);
        }
        self.show(*report)?;
        self.receive()
    }

    /// The first process takes in what has come, whether it is in the group or a spare.
    fn receive(&mut self) -> Result<()> {
        if !self.is_first() {
            return Ok(());
        }
        for rank in self.others() {
            while let Some(report) = self.comm.try_recv(rank, REPORT)? {
                self.hear(rank, &report)?;
            }
        }
        Ok(())
    }

    /// The first process waits for what is still to come, and prints the summary; others say that
    /// nothing more does.
    fn finish(mut self, setup: &Setup) -> Result<()> {
        if !self.is_first() {
            let last = Vec::<u8>::new().into();
            return Ok(self.comm.send(Rank::new(0), REPORT, last)?);
        }
        for rank in self.others() {
            while !self.ended.contains(&rank) {
                let report = self.comm.recv(rank, REPORT)?;
                self.hear(rank, &report)?;
            }
        }
        let summary = self.recorder.summary();
        print_summary(&summary)?;
        verdict(&summary, &setup.changes, Some(setup.steps))
    }
}

fn read(report: &Buffer) -> Result<RankStep> {
    serde_json::from_slice(&report.to_bytes()).map_err(|error| unreadable(&error))
}

fn unreadable(error: &serde_json::Error) -> CliError {
    CliError::usage(format!("the report of a rank cannot be read: {error}"))
}
