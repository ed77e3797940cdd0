//! Where the steps of a live run are shown.

use std::io::IsTerminal;

use super::dashboard::Dashboard;
use super::record::Step;
use crate::error::{CliError, Result};
use crate::output::print_to_reader;

/// A dashboard, or lines of JSON.
pub(super) enum Show {
    Screen(Box<Dashboard>),
    /// And whether anybody reads them.
    Lines {
        read: bool,
    },
}

impl Show {
    pub(super) fn new(json: bool, title: String) -> Result<Self> {
        if json || !std::io::stdout().is_terminal() {
            return Ok(Self::lines());
        }
        let dashboard = Dashboard::open(title)
            .map_err(|e| CliError::usage(format!("the terminal cannot be drawn on: {e}")))?;
        Ok(Self::Screen(Box::new(dashboard)))
    }

    /// Lines, which somebody reads as far as is known.
    pub(super) fn lines() -> Self {
        Self::Lines { read: true }
    }

    pub(super) fn steps(&mut self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            match self {
                Self::Screen(dashboard) => dashboard.push(step),
                Self::Lines { read } => {
                    let line = serde_json::to_string(&step).unwrap_or_default();
                    *read &= print_to_reader(&line)?;
                }
            }
        }
        Ok(())
    }

    /// Whether the user wants to end, or reads no more.
    pub(super) fn draw(&mut self) -> Result<bool> {
        match self {
            Self::Screen(dashboard) => dashboard
                .draw()
                .map_err(|e| CliError::usage(format!("the terminal cannot be drawn on: {e}"))),
            Self::Lines { read } => Ok(!*read),
        }
    }
}
