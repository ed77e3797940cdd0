//! The ranks of a live run as processes: those beyond the group wait as spares.

use std::sync::Arc;

use moekit::live::LiveError;
use moekit::parallel::{Buffer, CommError, Communicator, RankPool};
use moekit::routing::Rank;

use super::drive::{Growth, News, Setup, take_part};
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
    let mut growth = Growth::default();
    let mut is_wanted = comm.rank().index() < ranks;
    while is_wanted || pool.wait_for_invitation().map_err(LiveError::from)? {
        is_wanted = false;
        let mut problem = None;
        let result = take_part(setup, pool.enter(), |news| {
            if let News::Step(report) = &news {
                grow(setup, &pool, &mut growth, report)?;
            }
            reports.push(news).map_err(|error| {
                let message = error.to_string();
                problem = Some(error);
                LiveError::Config(message)
            })
        });
        match result {
            Ok(()) => {}
            // It was invited, but the run has ended before it was let in.
            Err(LiveError::Group(CommError::NoGroup)) => break,
            Err(error) => return Err(problem.unwrap_or_else(|| error.into())),
        }
    }
    reports.finish(setup)
}

/// Asks spares to come, if some are missing. All processes count, as each of them may become rank 0.
fn grow(
    setup: &Setup,
    pool: &RankPool,
    growth: &mut Growth,
    report: &RankStep,
) -> Result<(), LiveError> {
    let missing = match (growth.missing(setup, report), report.rank) {
        (missing, 0) => missing,
        _ => 0,
    };
    let invited = pool.invite(missing)?;
    if invited < missing {
        // Who has just left may not have told yet.
        growth.again();
    }
    if setup.synchronous {
        pool.wait_for_newcomers(invited)?;
    }
    Ok(())
}

/// Over the communicator to the first process, which prints what all report.
pub(super) struct ToFirst<'a> {
    comm: &'a Arc<dyn Communicator>,
    recorder: Recorder,
}

impl<'a> ToFirst<'a> {
    pub(super) fn new(setup: &Setup, comm: &'a Arc<dyn Communicator>) -> Self {
        Self {
            comm,
            recorder: Recorder::new(setup.check.is_some()),
        }
    }

    fn is_first(&self) -> bool {
        self.comm.rank().index() == 0
    }

    fn show(&mut self, report: RankStep) -> Result<()> {
        Show::Lines.steps(self.recorder.push(report))
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
            let sent = self.comm.send(Rank::new(0), REPORT, bytes.into());
            return Ok(sent.map_err(LiveError::from)?);
        }
        self.show(*report)?;
        for rank in (1..self.comm.size()).map(Rank::new) {
            while let Some(report) = self.comm.try_recv(rank, REPORT).map_err(LiveError::from)? {
                self.show(read(&report)?)?;
            }
        }
        Ok(())
    }

    /// The first process waits for what is still to come, and prints the summary; others say that
    /// nothing more does.
    fn finish(mut self, setup: &Setup) -> Result<()> {
        if !self.is_first() {
            let end = self
                .comm
                .send(Rank::new(0), REPORT, Vec::<u8>::new().into());
            return Ok(end.map_err(LiveError::from)?);
        }
        for rank in (1..self.comm.size()).map(Rank::new) {
            loop {
                let report = self.comm.recv(rank, REPORT).map_err(LiveError::from)?;
                if report.is_empty() {
                    break;
                }
                self.show(read(&report)?)?;
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
