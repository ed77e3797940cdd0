use std::sync::Arc;

use moekit_placement::PlacementStrategy;
use moekit_routing::ReplicaSelector;

use crate::LiveError;
use crate::change::Cusum;
use crate::load::Window;

/// When rank 0 looks for a better placement. Each trigger works by itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Triggers {
    /// Every so many steps, at least 1.
    pub interval: Option<u64>,
    /// When the balancedness since the last delivery is below.
    pub balance_below: Option<f64>,
    /// When the balancedness has dropped for good.
    pub change: Option<Cusum>,
}

/// What a step and a byte cost, to tell whether a plan pays.
///
/// A plan pays if `gain * token_seconds * horizon_steps > bytes * byte_seconds`, with the gain in
/// routed tokens that the busiest ranks are spared per step, summed over layers. The figures are
/// settings, not measurements, so that decisions do not depend on the clock.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct CostModel {
    /// Seconds that one more routed token takes on the busiest rank.
    pub token_seconds: f64,
    /// Seconds that one moved byte takes.
    pub byte_seconds: f64,
    /// Steps for which a plan is expected to hold.
    pub horizon_steps: f64,
}

impl CostModel {
    /// A model.
    pub fn new(token_seconds: f64, byte_seconds: f64, horizon_steps: f64) -> Self {
        Self {
            token_seconds,
            byte_seconds,
            horizon_steps,
        }
    }

    /// `None` if the plan pays, else why it does not.
    pub(crate) fn objection(&self, gain: f64, bytes: u64) -> Option<String> {
        let saved = gain * self.token_seconds * self.horizon_steps;
        let cost = bytes as f64 * self.byte_seconds;
        (saved <= cost).then(|| {
            format!(
                "it saves {gain:.1} tokens of the busiest ranks per step, {saved:.3e} s over {} steps, and moves {bytes} bytes in {cost:.3e} s",
                self.horizon_steps
            )
        })
    }
}

/// How a group lives. The same on all ranks.
///
/// ```
/// use std::sync::Arc;
/// use moekit_live::{LiveConfig, Window};
/// # use moekit_placement::{ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, typetag};
/// # #[derive(Debug, serde::Serialize, serde::Deserialize)]
/// # struct Dealt;
/// # #[typetag::serde(name = "doc-dealt")]
/// # impl PlacementStrategy for Dealt {
/// #     fn place(&self, r: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
/// #         let slots = (0..r.num_slots()).map(|s| s % r.num_logical_experts()).collect();
/// #         ModelPlacement::new(vec![Placement::new(r.num_logical_experts(), slots, r.rank_offsets())?])
/// #     }
/// # }
/// let config = LiveConfig::new(Arc::new(Dealt))
///     .with_redundant_experts(8)
///     .with_interval(1000)
///     .with_window(Window::Ring(100))
///     .with_bytes_per_step(4 << 20);
/// # drop(config);
/// ```
#[derive(Clone, Debug)]
pub struct LiveConfig {
    pub(crate) strategy: Arc<dyn PlacementStrategy>,
    pub(crate) redundant_experts: usize,
    pub(crate) expert_groups: Option<usize>,
    pub(crate) nodes: usize,
    pub(crate) selector: ReplicaSelector,
    pub(crate) watch: bool,
    pub(crate) load_interval: u64,
    pub(crate) window: Window,
    pub(crate) triggers: Triggers,
    pub(crate) cost: Option<CostModel>,
    pub(crate) bytes_per_step: usize,
    pub(crate) staging_bytes: u64,
    pub(crate) deadline_steps: u64,
    pub(crate) retry_steps: u64,
    pub(crate) synchronous: bool,
}

impl LiveConfig {
    /// No trigger, loads delivered every step, a window of 1000 deliveries, any plan is taken;
    /// 1 MiB per step, 256 MiB of staging, a deadline of 1000 steps, another attempt after 100.
    pub fn new(strategy: Arc<dyn PlacementStrategy>) -> Self {
        Self {
            strategy,
            redundant_experts: 0,
            expert_groups: None,
            nodes: 1,
            selector: ReplicaSelector::default(),
            watch: true,
            load_interval: 1,
            window: Window::Ring(1000),
            triggers: Triggers::default(),
            cost: None,
            bytes_per_step: 1 << 20,
            staging_bytes: 256 << 20,
            deadline_steps: 1000,
            retry_steps: 100,
            synchronous: false,
        }
    }

    /// The strategy.
    pub fn strategy(&self) -> &Arc<dyn PlacementStrategy> {
        &self.strategy
    }

    /// Slots beyond one per expert, over all ranks, whatever their number. Every rank has as many
    /// slots: where ranks do not divide them, there are more.
    #[must_use]
    pub fn with_redundant_experts(mut self, redundant: usize) -> Self {
        self.redundant_experts = redundant;
        self
    }

    /// Expert groups of the gate.
    #[must_use]
    pub fn with_expert_groups(mut self, groups: usize) -> Self {
        self.expert_groups = Some(groups);
        self
    }

    /// Nodes that the ranks are spread over as evenly as possible; a group of fewer ranks has one on
    /// each.
    #[must_use]
    pub fn with_nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// Which replica of an expert serves a token.
    #[must_use]
    pub fn with_selector(mut self, selector: ReplicaSelector) -> Self {
        self.selector = selector;
        self
    }

    /// Whether loads are watched. Without it nothing is counted or sent, and no trigger but the
    /// interval can fire.
    #[must_use]
    pub fn with_load_watching(mut self, watch: bool) -> Self {
        self.watch = watch;
        self
    }

    /// Every how many steps ranks deliver their loads to rank 0, at least 1.
    #[must_use]
    pub fn with_load_interval(mut self, steps: u64) -> Self {
        self.load_interval = steps;
        self
    }

    /// How much of the past a plan looks at, counted in deliveries.
    #[must_use]
    pub fn with_window(mut self, window: Window) -> Self {
        self.window = window;
        self
    }

    /// When to look for a better placement.
    #[must_use]
    pub fn with_triggers(mut self, triggers: Triggers) -> Self {
        self.triggers = triggers;
        self
    }

    /// Looks for a better placement every so many steps, at least 1.
    #[must_use]
    pub fn with_interval(mut self, steps: u64) -> Self {
        self.triggers.interval = Some(steps);
        self
    }

    /// Takes only plans that pay.
    #[must_use]
    pub fn with_cost(mut self, cost: CostModel) -> Self {
        self.cost = Some(cost);
        self
    }

    /// Bytes of experts that a rank sends, and that it receives, between two forward passes, at
    /// most.
    #[must_use]
    pub fn with_bytes_per_step(mut self, bytes: usize) -> Self {
        self.bytes_per_step = bytes;
        self
    }

    /// Bytes of experts that a rank receives before it commits, at most, over all layers under way.
    /// A layer for which they are too few commits in several stages; a budget below one expert is
    /// refused.
    #[must_use]
    pub fn with_staging_bytes(mut self, bytes: u64) -> Self {
        self.staging_bytes = bytes;
        self
    }

    /// Steps after which a planner, a read or a preparation that has not ended is given up. It means
    /// nothing for a [synchronous](Self::with_synchronous) group, which makes no step meanwhile.
    #[must_use]
    pub fn with_deadline(mut self, steps: u64) -> Self {
        self.deadline_steps = steps;
        self
    }

    /// Steps from a failure to the next attempt, and from a plan that was skipped to the next that
    /// the balance may ask for.
    #[must_use]
    pub fn with_retry(mut self, steps: u64) -> Self {
        self.retry_steps = steps;
        self
    }

    /// Waits, between two forward passes, for what otherwise goes on beside them: planners, reads
    /// and preparations. In which step a plan or a commit falls is then a function of the inputs.
    ///
    /// What never returns is waited for without end: no step passes that could be counted against
    /// the [deadline](Self::with_deadline).
    #[must_use]
    pub fn with_synchronous(mut self, synchronous: bool) -> Self {
        self.synchronous = synchronous;
        self
    }

    pub(crate) fn check(&self) -> Result<(), LiveError> {
        let wrong = |message: String| Err(LiveError::Config(message));
        if self.bytes_per_step == 0 {
            return wrong(
                "a budget of 0 bytes per step moves nothing, it must be at least 1".into(),
            );
        }
        if self.load_interval == 0 {
            return wrong("loads are delivered every 0 steps, it must be at least every 1".into());
        }
        if self.triggers.interval == Some(0) {
            return wrong("rebalancing every 0 steps never happens, it must be at least 1".into());
        }
        if self.nodes == 0 {
            return wrong("a group sits on at least 1 node, not on 0".into());
        }
        self.check_rebalancing()?;
        match self.window {
            Window::Ring(0) => wrong("a window of 0 deliveries holds no load".into()),
            Window::Exponential(f) if !(0.0..1.0).contains(&f) => wrong(format!(
                "the factor of an exponential window is {f}, it must be in [0, 1)"
            )),
            _ => Ok(()),
        }
    }

    fn check_rebalancing(&self) -> Result<(), LiveError> {
        let wrong = |what: &str, got: f64, expected: &str| {
            let message = format!("{what} is {got}, it must be {expected}");
            Err(LiveError::Config(message))
        };
        if let Some(limit) = self.triggers.balance_below
            && !(limit > 0.0 && limit <= 1.0)
        {
            return wrong("the limit of the balancedness", limit, "in (0, 1]");
        }
        let change = self.triggers.change.into_iter().flat_map(|change| {
            [
                ("the slack of the change detector", change.slack),
                ("the threshold of the change detector", change.threshold),
            ]
        });
        let cost = self.cost.into_iter().flat_map(|cost| {
            [
                ("the time of a token", cost.token_seconds),
                ("the time of a moved byte", cost.byte_seconds),
                ("the steps for which a plan holds", cost.horizon_steps),
            ]
        });
        for (what, value) in change.chain(cost) {
            if !(value.is_finite() && value >= 0.0) {
                return wrong(what, value, "finite and at least 0");
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use moekit_placement::{ModelPlacement, PlacementError, PlacementRequest, typetag};

    use super::*;

    #[derive(Debug, serde::Serialize, serde::Deserialize)]
    struct Never;

    #[typetag::serde(name = "live-config-test-never")]
    impl PlacementStrategy for Never {
        fn place(&self, _: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
            unreachable!("settings are checked before anything is placed")
        }
    }

    #[test]
    fn settings_that_make_no_sense_are_refused() {
        let config = || LiveConfig::new(Arc::new(Never));
        let triggers = |balance_below, change| Triggers {
            balance_below,
            change,
            ..Triggers::default()
        };
        let refused = [
            (config().with_bytes_per_step(0), "0 bytes per step"),
            (config().with_nodes(0), "at least 1 node"),
            (config().with_interval(0), "rebalancing every 0 steps"),
            (
                config().with_load_interval(0),
                "loads are delivered every 0 steps",
            ),
            (config().with_window(Window::Ring(0)), "0 deliveries"),
            (
                config().with_window(Window::Exponential(1.0)),
                "window is 1",
            ),
            (
                config().with_triggers(triggers(Some(f64::NAN), None)),
                "is NaN, it must be in (0, 1]",
            ),
            (
                config().with_triggers(triggers(Some(2.0), None)),
                "is 2, it must be in (0, 1]",
            ),
            (
                config().with_triggers(triggers(Some(0.0), None)),
                "is 0, it must be in (0, 1]",
            ),
            (
                config().with_triggers(triggers(None, Some(Cusum::new(f64::NAN, 1.0)))),
                "slack of the change detector is NaN",
            ),
            (
                config().with_triggers(triggers(None, Some(Cusum::new(0.0, -1.0)))),
                "threshold of the change detector is -1",
            ),
            (
                config().with_cost(CostModel::new(f64::NAN, 1.0, 1.0)),
                "time of a token is NaN",
            ),
            (
                config().with_cost(CostModel::new(1.0, -1.0, 1.0)),
                "moved byte is -1",
            ),
            (
                config().with_cost(CostModel::new(1.0, 1e-9, f64::INFINITY)),
                "plan holds is inf",
            ),
        ];
        for (config, said) in refused {
            let error = config.check().unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let sensible = config()
            .with_triggers(triggers(Some(1.0), Some(Cusum::new(0.0, 0.0))))
            .with_cost(CostModel::new(1e-6, 0.0, 100.0))
            .with_window(Window::Exponential(0.0));
        assert!(sensible.check().is_ok());
    }
}
