use std::fmt::Debug;

use moekit_plugin::Registry;
use serde_json::Value;

use crate::{
    ExpertLoad, MigrationBudget, MigrationPlanner, ModelPlacement, PlacementChange, PlacementError,
    PlacementRequest, StepBudget,
};

/// The kind under which strategies register.
pub const STRATEGY_KIND: &str = "placement strategy";

/// What a strategy makes use of, for listings and reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Capabilities {
    /// The observed load changes the answer.
    pub uses_load: bool,
    /// The placement in force changes the answer.
    pub uses_current: bool,
    /// Nodes and expert groups change the answer.
    pub uses_nodes: bool,
    /// The migration budget is kept.
    pub keeps_budget: bool,
    /// The strategy itself decides how many slots a rank has in each layer.
    pub decides_slots: bool,
}

/// Decides which logical expert sits in which physical slot.
///
/// A strategy *is* its configuration: a plain serde struct without state. `place` is a pure
/// function of the request: same request, same answer. Register it with
/// [`register_strategy!`](crate::register_strategy).
#[typetag::serde(tag = "strategy")]
pub trait PlacementStrategy: Debug + Send + Sync {
    /// Answers a request. Callers use [`plan`](#method.plan), which also checks the answer.
    ///
    /// # Errors
    ///
    /// If the request does not meet what the strategy requires. A strategy never answers
    /// something else than what was asked.
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError>;

    /// What the strategy makes use of.
    fn capabilities(&self) -> Capabilities {
        Capabilities::default()
    }

    /// The relative speed of each rank that it plans for, `[R]`; empty if all are alike. Reports and
    /// the gain of a plan weigh the load of a rank by it.
    fn speeds(&self) -> &[f64] {
        &[]
    }
}

impl dyn PlacementStrategy + '_ {
    /// The name that configurations use.
    pub fn name(&self) -> &'static str {
        self.typetag_name()
    }

    /// Places, and makes sure that the answer fits the request.
    ///
    /// # Errors
    ///
    /// Those of [`PlacementStrategy::place`]; [`PlacementError::Contract`] if the answer has other
    /// layers, experts, ranks or slots than asked for.
    pub fn plan(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        let placement = self.place(request)?;
        let mut checked = placement.check_shape(request);
        if !self.capabilities().decides_slots {
            checked = checked.and_then(|()| placement.check_slots(request));
        }
        match checked {
            Ok(()) => Ok(placement),
            Err(error) => Err(PlacementError::Contract {
                strategy: self.name().to_owned(),
                message: error.to_string(),
            }),
        }
    }

    /// [`plan`](#method.plan), held to the migration budget of the request. The plan of a strategy
    /// that does not keep it itself is cut to what the budget allows, the largest gain per slot
    /// first, and where the rank loads are lowest on that way ([`MigrationPlanner::cut_at_best`]); a
    /// budget that pays for no part of it leaves the placement in force. Without a load, all experts
    /// count alike.
    ///
    /// # Errors
    ///
    /// Those of [`plan`](#method.plan), and of the cut; [`PlacementError::Contract`] if a strategy says
    /// that it keeps budgets and does not; [`PlacementError::Precondition`] if the budget does not pay
    /// the way to other ranks or slots, half of which is no answer.
    pub fn plan_within_budget(
        &self,
        request: &PlacementRequest<'_>,
    ) -> Result<ModelPlacement, PlacementError> {
        let plan = self.plan(request)?;
        let budget = request.budget();
        let (Some(current), Some(slots)) = (request.current(), budget.slots()) else {
            return Ok(plan);
        };
        let layers = current.layers().iter().zip(plan.layers());
        let received = layers.map(|(old, new)| PlacementChange::between(old, new).slots_received());
        let received: usize = received.sum();
        if received <= slots {
            return Ok(plan);
        }
        let moves = format!("moves {received} slots where the budget is {slots}");
        let capabilities = self.capabilities();
        if capabilities.keeps_budget {
            return Err(PlacementError::Contract {
                strategy: self.name().to_owned(),
                message: format!("it says that it keeps the migration budget, and {moves}"),
            });
        }
        let mut fits = current.check_shape(request);
        if !capabilities.decides_slots {
            fits = fits.and_then(|()| current.check_slots(request));
        }
        if let Err(other) = fits {
            return Err(PlacementError::precondition(
                self.name(),
                format!(
                    "the plan {moves}, and the placement in force cannot go a part of the way ({other}); it takes a budget of {received} slots"
                ),
            ));
        }
        let cut = match request.load() {
            Some(load) => within(budget, request, current, &plan, load),
            None => {
                let alike = vec![vec![1.0; request.num_logical_experts()]; request.num_layers()];
                within(
                    budget,
                    request,
                    current,
                    &plan,
                    &ExpertLoad::from_rows(&alike)?,
                )
            }
        };
        match cut {
            Err(PlacementError::BudgetTooSmall { .. }) => Ok(current.clone()),
            reached => reached,
        }
    }
}

/// The part of the way to `plan` that a budget pays.
fn within(
    budget: MigrationBudget,
    request: &PlacementRequest<'_>,
    current: &ModelPlacement,
    plan: &ModelPlacement,
    load: &ExpertLoad,
) -> Result<ModelPlacement, PlacementError> {
    let mut planner = MigrationPlanner::new(request.topology());
    let budget = match budget {
        MigrationBudget::Unlimited => return Ok(plan.clone()),
        MigrationBudget::Slots(slots) => StepBudget::Slots(slots),
        MigrationBudget::Bytes { budget, per_expert } => {
            planner = planner.with_expert_bytes(per_expert);
            StepBudget::Bytes(budget)
        }
    };
    Ok(planner.cut_at_best(current, plan, load, budget)?.reached)
}

/// The strategies that this program links, by name.
///
/// # Errors
///
/// If two different strategies have one name.
pub fn linked_strategies() -> Result<Registry, PlacementError> {
    Ok(Registry::linked(STRATEGY_KIND)?)
}

/// Makes the strategy that a configuration names: a table with the key `strategy` and the
/// strategy's settings.
///
/// # Errors
///
/// If there is no such strategy (the message lists those that are linked) or a setting is wrong.
pub fn strategy_from_value(config: Value) -> Result<Box<dyn PlacementStrategy>, PlacementError> {
    let Some(name) = config
        .get("strategy")
        .and_then(Value::as_str)
        .map(str::to_owned)
    else {
        return Err(PlacementError::NoStrategyName {
            got: config.to_string(),
        });
    };
    // Asked before typetag, whose own error for an unknown tag does not know about linking.
    linked_strategies()?.get(&name)?;
    serde_json::from_value(config).map_err(|error| PlacementError::Settings {
        strategy: name,
        message: error.to_string(),
    })
}

/// Registers a strategy: writes the `pub static DESCRIPTOR` of this module and submits it.
///
/// The type implements [`PlacementStrategy`] under `#[typetag::serde(name = "...")]` with the same
/// name and derives `schemars::JsonSchema`. One module registers one strategy.
///
/// See the [crate's example](crate).
#[macro_export]
macro_rules! register_strategy {
    ($type:ty, name: $name:literal, summary: $summary:literal, example: $example:expr $(,)?) => {
        /// What this strategy says of itself.
        pub static DESCRIPTOR: $crate::plugin::Descriptor = $crate::plugin::Descriptor {
            kind: $crate::STRATEGY_KIND,
            name: $name,
            summary: $summary,
            crate_name: env!("CARGO_PKG_NAME"),
            crate_version: env!("CARGO_PKG_VERSION"),
            schema: $crate::plugin::__private::schema::<$type>,
            example: || {
                let example: &dyn $crate::PlacementStrategy = &$example;
                $crate::plugin::__private::serde_json::to_value(example).unwrap_or_default()
            },
        };

        $crate::plugin::__private::inventory::submit! {
            $crate::plugin::__private::Registration(&DESCRIPTOR)
        }
    };
}
