//! What a live run tells, step by step and in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use moekit::live::{Event, StepReport};
use serde::{Deserialize, Serialize};

/// What one rank did in one step.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct RankStep {
    pub(super) rank: usize,
    pub(super) ranks: usize,
    /// Sum of the generations of the layers' tables: the same on all ranks, and higher in every later
    /// group.
    pub(super) generation: u64,
    pub(super) report: StepReport,
    /// Whether the group before had failed.
    pub(super) recovered: bool,
    /// All layers' forward passes.
    pub(super) forward: Duration,
    pub(super) unserved: usize,
    /// Outputs that differ from one rank's, and all that were compared.
    pub(super) wrong: usize,
    pub(super) compared: usize,
}

/// One step of the group.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Step {
    pub(super) step: u64,
    pub(super) ranks: usize,
    /// Sum over layers of the mean over the sum of the largest tokens of a rank.
    pub(super) balancedness: f64,
    /// Routed tokens of each rank, over all layers.
    pub(super) tokens: Vec<u64>,
    /// Of the slowest rank's forward passes, by what the steps before lead to expect.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) predicted_ms: Option<f64>,
    pub(super) measured_ms: f64,
    /// Longest work of a rank between the forward passes.
    pub(super) between_ms: f64,
    pub(super) sent_bytes: u64,
    pub(super) state: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) events: Vec<Event>,
    #[serde(skip_serializing_if = "is_zero")]
    pub(super) unserved: usize,
    #[serde(skip)]
    recovered: bool,
    #[serde(skip)]
    wrong: usize,
    #[serde(skip)]
    compared: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

/// What the run ends with.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Summary {
    pub(super) steps: u64,
    pub(super) mean_balancedness: f64,
    pub(super) commits: usize,
    pub(super) plans_adopted: usize,
    pub(super) plans_skipped: usize,
    pub(super) failures: usize,
    pub(super) moved_bytes: u64,
    pub(super) unserved_tokens: usize,
    /// Median of the forward passes of a step, of its slowest rank.
    pub(super) median_step_ms: f64,
    /// Longest work between two forward passes in steps in which nothing moved, and in others.
    pub(super) longest_pause_idle_ms: f64,
    pub(super) longest_pause_moving_ms: f64,
    pub(super) median_pause_idle_ms: f64,
    pub(super) median_pause_moving_ms: f64,
    /// Mean of the prediction's error, relative to the measured time.
    pub(super) prediction_error: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) wrong_outputs: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) compared_outputs: Option<usize>,
    /// Steps that were repeated by a group after one that had failed.
    #[serde(skip)]
    pub(super) recovered_in: BTreeSet<u64>,
    /// Each step and the ranks in it.
    #[serde(skip)]
    pub(super) sizes: Vec<(u64, usize)>,
}

/// Puts the ranks' reports together, and keeps what the summary needs.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    open: BTreeMap<u64, Vec<RankStep>>,
    /// The last step that is complete.
    closed: u64,
    fit: Fit,
    steps: Vec<Step>,
    check: bool,
}

impl Recorder {
    pub(super) fn new(check: bool) -> Self {
        Self {
            check,
            ..Self::default()
        }
    }

    /// Takes in a report; the steps that are complete by it, or that can no longer become so. Each
    /// step comes once: reports that are late for it are dropped, as are those of a group that did not
    /// come to its end.
    pub(super) fn push(&mut self, report: RankStep) -> Vec<Step> {
        let (step, ranks) = (report.report.step, report.ranks);
        if step <= self.closed {
            return Vec::new();
        }
        let reports = self.open.entry(step).or_default();
        if reports.iter().any(|r| r.generation > report.generation) {
            return Vec::new();
        }
        reports.retain(|r| r.generation == report.generation);
        reports.push(report);
        if reports.len() < ranks {
            return Vec::new();
        }
        self.closed = step;
        let later = self.open.split_off(&(step + 1));
        let done = std::mem::replace(&mut self.open, later);
        let done: Vec<Step> = done
            .into_values()
            .map(|reports| self.close(reports))
            .collect();
        self.steps.extend(done.iter().cloned());
        done
    }

    fn close(&mut self, reports: Vec<RankStep>) -> Step {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let mut step = Step::default();
        let mut busiest = None;
        for rank in reports {
            step.measured_ms = step.measured_ms.max(ms(rank.forward));
            step.between_ms = step.between_ms.max(ms(rank.report.work));
            step.sent_bytes += rank.report.sent_bytes;
            step.unserved += rank.unserved;
            step.recovered |= rank.recovered;
            step.wrong += rank.wrong;
            step.compared += rank.compared;
            step.step = rank.report.step;
            step.ranks = rank.ranks;
            // The same on all ranks; rank 0, which knows more, may have been killed.
            if rank.rank == 0 || step.state.is_empty() {
                step.state = rank.report.state.to_string();
            }
            if rank.rank == 0 {
                step.events = rank.report.events;
                if let Some(balance) = rank.report.balance {
                    step.balancedness = balance.aggregate;
                    let largest = |ranks: &Vec<u64>| ranks.iter().copied().max().unwrap_or(0);
                    busiest = Some(balance.tokens.iter().map(largest).sum::<u64>() as f64);
                    step.tokens = vec![0; rank.ranks];
                    for ranks in &balance.tokens {
                        step.tokens
                            .iter_mut()
                            .zip(ranks)
                            .for_each(|(sum, n)| *sum += n);
                    }
                }
            }
        }
        if let Some(busiest) = busiest {
            step.predicted_ms = self.fit.predict(busiest);
            self.fit.push(busiest, step.measured_ms);
        }
        step
    }

    pub(super) fn summary(&self) -> Summary {
        let balanced = self.steps.iter().filter(|s| !s.tokens.is_empty());
        let balance: Vec<f64> = balanced.map(|s| s.balancedness).collect();
        let idle = |s: &&Step| s.state == "idle" && s.events.is_empty();
        let pauses = |moving: bool| -> Vec<f64> {
            let of = self.steps.iter().filter(|s| idle(s) != moving);
            of.map(|s| s.between_ms).collect()
        };
        let errors = self.steps.iter().filter_map(|s| {
            Some((s.predicted_ms? - s.measured_ms).abs() / s.measured_ms.max(f64::MIN_POSITIVE))
        });
        let errors: Vec<f64> = errors.collect();
        let events = self.steps.iter().flat_map(|s| &s.events);
        let recovered = self.steps.iter().filter(|s| s.recovered);
        let mut summary = Summary {
            steps: self.steps.last().map_or(0, |s| s.step),
            mean_balancedness: mean(&balance),
            moved_bytes: self.steps.iter().map(|s| s.sent_bytes).sum(),
            unserved_tokens: self.steps.iter().map(|s| s.unserved).sum(),
            median_step_ms: median(self.steps.iter().map(|s| s.measured_ms).collect()),
            longest_pause_idle_ms: pauses(false).into_iter().fold(0.0, f64::max),
            longest_pause_moving_ms: pauses(true).into_iter().fold(0.0, f64::max),
            median_pause_idle_ms: median(pauses(false)),
            median_pause_moving_ms: median(pauses(true)),
            prediction_error: mean(&errors),
            recovered_in: recovered.map(|s| s.step).collect(),
            sizes: self.steps.iter().map(|s| (s.step, s.ranks)).collect(),
            wrong_outputs: self.check.then(|| self.steps.iter().map(|s| s.wrong).sum()),
            compared_outputs: self
                .check
                .then(|| self.steps.iter().map(|s| s.compared).sum()),
            ..Summary::default()
        };
        for event in events {
            match event {
                Event::Committed { .. } => summary.commits += 1,
                Event::PlanAdopted { .. } => summary.plans_adopted += 1,
                Event::PlanSkipped { .. } => summary.plans_skipped += 1,
                Event::Failed { .. } => summary.failures += 1,
                _ => {}
            }
        }
        summary
    }
}

impl Summary {
    pub(super) fn lines(&self) -> String {
        let mut lines = vec![
            format!(
                "{} steps, mean balancedness {:.4}, median step {:.3} ms (predicted within {:.1} % on average)",
                self.steps,
                self.mean_balancedness,
                self.median_step_ms,
                100.0 * self.prediction_error
            ),
            format!(
                "{} plans adopted, {} skipped, {} failures; {} layers committed, {} bytes moved",
                self.plans_adopted,
                self.plans_skipped,
                self.failures,
                self.commits,
                self.moved_bytes
            ),
            format!(
                "between forward passes: median {:.3} ms and longest {:.3} ms while idle, {:.3} ms and {:.3} ms otherwise",
                self.median_pause_idle_ms,
                self.longest_pause_idle_ms,
                self.median_pause_moving_ms,
                self.longest_pause_moving_ms
            ),
        ];
        if self.unserved_tokens > 0 {
            lines.push(format!("{} tokens were not served", self.unserved_tokens));
        }
        if let (Some(wrong), Some(compared)) = (self.wrong_outputs, self.compared_outputs) {
            lines.push(format!(
                "{wrong} of {compared} outputs differ from one rank's"
            ));
        }
        lines.join("\n")
    }
}

fn mean(values: &[f64]) -> f64 {
    if values.is_empty() {
        return 0.0;
    }
    values.iter().sum::<f64>() / values.len() as f64
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(0.0)
}

/// The time of a step as a line over the tokens of the busiest ranks, by least squares over the
/// steps before, each counted 2 % less than the next.
#[derive(Debug, Default)]
struct Fit {
    weight: f64,
    mean: [f64; 2],
    variance: f64,
    covariance: f64,
}

impl Fit {
    fn predict(&self, x: f64) -> Option<f64> {
        let slope = if self.variance > 1e-9 * self.weight {
            (self.covariance / self.variance).max(0.0)
        } else {
            0.0
        };
        (self.weight > 4.0).then(|| self.mean[1] + slope * (x - self.mean[0]))
    }

    fn push(&mut self, x: f64, y: f64) {
        let keep = 0.98;
        self.weight = keep * self.weight + 1.0;
        let (dx, dy) = (x - self.mean[0], y - self.mean[1]);
        self.mean[0] += dx / self.weight;
        self.mean[1] += dy / self.weight;
        self.variance = keep * self.variance + dx * (x - self.mean[0]);
        self.covariance = keep * self.covariance + dx * (y - self.mean[1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(step: u64, rank: usize, [generation, ranks]: [u64; 2]) -> RankStep {
        let mut report = StepReport::default();
        report.step = step;
        RankStep {
            rank,
            ranks: ranks as usize,
            generation,
            report,
            recovered: false,
            forward: Duration::ZERO,
            unserved: 0,
            wrong: 0,
            compared: 1,
        }
    }

    #[test]
    fn a_step_comes_once_with_the_reports_of_the_group_that_ended_it() {
        let mut recorder = Recorder::new(true);
        let mut push = |step, rank, group| {
            let steps = recorder.push(report(step, rank, group)).into_iter();
            steps.map(|s| (s.step, s.compared)).collect::<Vec<_>>()
        };
        let (three, two) = ([0, 3], [1, 2]);
        assert_eq!(push(1, 0, three), []);
        assert_eq!(push(1, 1, three), []);
        assert_eq!(push(2, 0, three), []);
        // Step 2 is repeated by those that are left, and step 1 can no longer become complete.
        assert_eq!(push(2, 1, two), []);
        assert_eq!(push(2, 1, three), [], "of a group that is no more");
        assert_eq!(push(2, 0, two), [(1, 2), (2, 2)]);
        assert_eq!(push(1, 2, three), [], "late");
        assert_eq!(push(2, 2, three), [], "late");
        assert_eq!(push(3, 0, [2, 1]), [(3, 1)]);
    }

    #[test]
    fn a_line_is_found() {
        let mut fit = Fit::default();
        for x in [10.0, 30.0, 20.0, 50.0, 40.0, 10.0] {
            fit.push(x, 3.0 + 0.5 * x);
        }
        let predicted = fit.predict(100.0).unwrap();
        assert!((predicted - 53.0).abs() < 1e-6, "{predicted}");
    }
}
