//! Where the steps of a live run are shown.

use std::io::IsTerminal;

use super::dashboard::Dashboard;
use super::record::Step;
use crate::error::{CliError, Result};
use crate::output::print_line;

/// A dashboard, or lines of JSON.
pub(super) enum Show {
    Screen(Box<Dashboard>),
    Lines,
}

impl Show {
    pub(super) fn new(json: bool, title: String) -> Result<Self> {
        if json || !std::io::stdout().is_terminal() {
            return Ok(Self::Lines);
        }
        let dashboard = Dashboard::open(title)
            .map_err(|e| CliError::usage(format!("the terminal cannot be drawn on: {e}")))?;
        Ok(Self::Screen(Box::new(dashboard)))
    }

    pub(super) fn steps(&mut self, steps: Vec<Step>) -> Result<()> {
        for step in steps {
            match self {
                Self::Screen(dashboard) => dashboard.push(step),
                Self::Lines => print_line(&serde_json::to_string(&step).unwrap_or_default())?,
            }
        }
        Ok(())
    }

    /// Whether the user wants to end.
    pub(super) fn draw(&mut self) -> Result<bool> {
        match self {
            Self::Screen(dashboard) => dashboard
                .draw()
                .map_err(|e| CliError::usage(format!("the terminal cannot be drawn on: {e}"))),
            Self::Lines => Ok(false),
        }
    }
}
