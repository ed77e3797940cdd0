//! What `--rebalance` says.

use std::collections::BTreeSet;

use moekit::live::{CostModel, Cusum, LiveConfig, Triggers, Window};

use crate::error::{CliError, Result};

const FORM: &str = "KEY=VALUE,... of interval=STEPS, below=BALANCEDNESS, cusum=SLACK:THRESHOLD, window=STEPS, decay=FACTOR, pays=TOKEN_SECONDS:BYTE_SECONDS:STEPS; or off";

/// Steps from plan to plan if no trigger is named, and of the window if that is not.
const STEPS: u32 = 32;

/// Triggers, window and cost model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Rebalance {
    pub(super) triggers: Triggers,
    pub(super) window: Window,
    pub(super) cost: Option<CostModel>,
}

impl Rebalance {
    /// Reads the option's text. Only `off` is without a trigger.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut rebalance = Self {
            triggers: Triggers::default(),
            window: Window::Ring(STEPS as usize),
            cost: None,
        };
        if text == "off" {
            return Ok(rebalance);
        }
        let mut seen = BTreeSet::new();
        for part in text.split(',') {
            let wrong = || CliError::usage(format!("`--rebalance {text}`: `{part}` is not {FORM}"));
            let (key, value) = part.split_once('=').ok_or_else(wrong)?;
            // Both say what of the past counts.
            let what = if key.trim() == "decay" {
                "window"
            } else {
                key.trim()
            };
            if !seen.insert(what) {
                return Err(CliError::usage(format!(
                    "`--rebalance {text}`: `{part}` contradicts what is said before it: each key is given once, and one of `window` and `decay`"
                )));
            }
            let numbers: Vec<f64> = value
                .split(':')
                .map(|number| number.trim().parse().map_err(|_| wrong()))
                .collect::<Result<_>>()?;
            let steps = |n: f64| (n >= 1.0 && n.fract() == 0.0 && n < 1e9).then_some(n as u64);
            let triggers = &mut rebalance.triggers;
            match (key.trim(), &numbers[..]) {
                ("interval", &[n]) => triggers.interval = Some(steps(n).ok_or_else(wrong)?),
                ("below", &[limit]) => triggers.balance_below = Some(limit),
                ("cusum", &[slack, threshold]) => {
                    triggers.change = Some(Cusum::new(slack, threshold));
                }
                ("window", &[n]) => {
                    rebalance.window = Window::Ring(steps(n).ok_or_else(wrong)? as usize);
                }
                ("decay", &[factor]) => rebalance.window = Window::Exponential(factor),
                ("pays", &[token, byte, horizon]) => {
                    rebalance.cost = Some(CostModel::new(token, byte, horizon));
                }
                _ => return Err(wrong()),
            }
        }
        if rebalance.triggers == Triggers::default() {
            rebalance.triggers.interval = Some(STEPS.into());
        }
        Ok(rebalance)
    }

    pub(super) fn apply(self, config: LiveConfig) -> LiveConfig {
        let config = config.with_triggers(self.triggers).with_window(self.window);
        match self.cost {
            Some(cost) => config.with_cost(cost),
            None => config,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_said() {
        let text = "interval=8,below=0.7,cusum=0.02:0.1,window=16,pays=1e-6:1e-9:100";
        let rebalance = Rebalance::parse(text).unwrap();
        assert_eq!(rebalance.triggers.interval, Some(8));
        assert_eq!(rebalance.triggers.change, Some(Cusum::new(0.02, 0.1)));
        assert_eq!(rebalance.window, Window::Ring(16));
        assert_eq!(rebalance.cost, Some(CostModel::new(1e-6, 1e-9, 100.0)));
        assert_eq!(
            Rebalance::parse("off").unwrap().triggers,
            Triggers::default()
        );
        for wrong in [
            "",
            "interval",
            "interval=0",
            "interval=1.5",
            "cusum=1",
            "speed=3",
            "below=x",
        ] {
            let error = Rebalance::parse(wrong).unwrap_err().to_string();
            assert!(error.contains("interval=STEPS"), "{error}");
        }
    }

    #[test]
    fn without_a_trigger_the_interval_is_that_of_the_default() {
        let triggers = |text| Rebalance::parse(text).unwrap().triggers;
        let default = triggers("interval=32,window=32");
        for text in ["window=8", "decay=0.9", "pays=1e-6:1e-9:100"] {
            assert_eq!(triggers(text), default, "{text}");
        }
        assert_eq!(triggers("window=8,below=0.9").interval, None);
    }

    #[test]
    fn nothing_is_said_twice() {
        for text in [
            "interval=8,interval=9",
            "window=8,window=8",
            "window=8,decay=0.5",
            "decay=0.5, window=8",
        ] {
            let error = Rebalance::parse(text).unwrap_err().to_string();
            assert!(error.contains("each key is given once"), "{error}");
        }
    }
}
