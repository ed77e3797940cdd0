//! Properties of what a strategy answers.

use moekit_placement::{ModelPlacement, PlacementChange, PlacementError, balance};

use super::{Answer, StrategySuite};
use crate::Violation;
use crate::case::{self, Case, slots_by_rank};

impl StrategySuite {
    /// A request that the strategy [supports](Self::supports) gets a placement, unless a migration budget
    /// does not pay the way from other slots. At least one of the standing requests must be such a
    /// one.
    ///
    /// # Errors
    ///
    /// A supported request that was refused.
    pub fn accepts_what_it_supports(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "accepts_what_it_supports";
        let standing = case::standing().map_err(|error| self.violation(PROPERTY, error))?;
        if !standing
            .iter()
            .any(|case| self.must_accept(case) == Ok(true))
        {
            let what = format!(
                "`supports` admits none of the {} standing requests, so nothing was tested; \
                 one of them asks for 1 layer of 8 experts on 2 ranks",
                standing.len()
            );
            return Err(self.violation(PROPERTY, what));
        }
        self.for_every_request(PROPERTY, |case| {
            if !self.must_accept(case)? {
                return Ok(());
            }
            match Answer::to(&*(self.make)(), case) {
                Answer::Placed(_) => Ok(()),
                // The way to other slots costs what it costs.
                Answer::Refused(PlacementError::BudgetTooSmall { .. })
                    if case.current_has_other_slots() =>
                {
                    Ok(())
                }
                answer => Err(format!("a supported request got {answer}")),
            }
        })
    }

    /// Holds `check` against every placement that the strategy answers.
    pub(super) fn for_every_placement(
        &self,
        property: &'static str,
        check: impl Fn(&Case, &ModelPlacement) -> Result<(), String>,
    ) -> Result<(), Violation> {
        self.for_every_request(property, |case| {
            match Answer::to(&*(self.make)(), case).placement() {
                Some(placement) => check(case, &placement),
                None => Ok(()),
            }
        })
    }

    /// Every layer that was asked for is placed, and every expert of it has a slot.
    ///
    /// # Errors
    ///
    /// A placement that lacks a layer or an expert.
    pub fn covers_all_experts(&self) -> Result<(), Violation> {
        self.for_every_placement("covers_all_experts", |case, placement| {
            if placement.num_layers() != case.layers {
                return Err(format!("{} layers were placed", placement.num_layers()));
            }
            for (l, layer) in placement.layers().iter().enumerate() {
                let mut placed: Vec<_> = slots_by_rank(layer).concat();
                placed.sort_unstable();
                placed.dedup();
                if !placed.iter().copied().eq(0..case.experts) {
                    return Err(format!("layer {l} holds the experts {placed:?}"));
                }
            }
            Ok(())
        })
    }

    /// Every rank that was asked for has as many slots as were asked for; a strategy that
    /// `decides_slots` only keeps the ranks.
    ///
    /// # Errors
    ///
    /// A placement with other ranks or slots.
    pub fn keeps_the_slots(&self) -> Result<(), Violation> {
        let decides_slots = (self.make)().capabilities().decides_slots;
        self.for_every_placement("keeps_the_slots", |case, placement| {
            let asked = case
                .request(|request| request.slots_per_rank().to_vec())
                .map_err(|error| error.to_string())?;
            for (l, layer) in placement.layers().iter().enumerate() {
                let slots: Vec<_> = slots_by_rank(layer).iter().map(Vec::len).collect();
                let kept = if decides_slots {
                    slots.len() == asked.len()
                } else {
                    slots == asked
                };
                if !kept {
                    return Err(format!(
                        "layer {l} has the slots per rank {slots:?}, not {asked:?}"
                    ));
                }
            }
            Ok(())
        })
    }

    /// The same request gets the same answer: from one strategy twice, from two of one
    /// configuration, and after other requests.
    ///
    /// # Errors
    ///
    /// Two answers to one request.
    pub fn is_deterministic(&self) -> Result<(), Violation> {
        let veteran = (self.make)();
        self.for_every_request("is_deterministic", |case| {
            let fresh = (self.make)();
            let first = Answer::to(&*fresh, case);
            for (who, strategy) in [
                ("the second time", &fresh),
                ("after other requests", &veteran),
            ] {
                let again = Answer::to(&**strategy, case);
                if again != first {
                    return Err(format!("first {first}, {who} {again}"));
                }
            }
            Ok(())
        })
    }

    /// No request makes the strategy panic, whatever it [supports](Self::supports).
    ///
    /// # Errors
    ///
    /// A panic.
    pub fn never_panics(&self) -> Result<(), Violation> {
        self.for_every_request("never_panics", |case| {
            match Answer::to(&*(self.make)(), case) {
                panic @ Answer::Panicked(_) => Err(panic.to_string()),
                _ => Ok(()),
            }
        })
    }

    /// An error says something, and if it is one about a strategy, it is about this one.
    /// [`PlacementError::Contract`] is not for strategies to use: it blames them.
    ///
    /// # Errors
    ///
    /// An error that helps nobody.
    pub fn refuses_clearly(&self) -> Result<(), Violation> {
        let name = (self.make)().name();
        self.for_every_request("refuses_clearly", |case| {
            let Answer::Refused(error) = Answer::to(&*(self.make)(), case) else {
                return Ok(());
            };
            let clear = match &error {
                PlacementError::Precondition { strategy, message }
                | PlacementError::Settings { strategy, message } => {
                    strategy == name && !message.trim().is_empty()
                }
                PlacementError::Contract { .. } => false,
                other => !other.to_string().trim().is_empty(),
            };
            if clear {
                Ok(())
            } else {
                Err(format!("the refusal is {error:?}"))
            }
        })
    }

    /// A strategy that `keeps_budget` moves no more slots than the budget allows. The plan of any other,
    /// cut to the budget, does not either, has the slots that were asked for, and ranks are no busier
    /// than in the placement in force.
    ///
    /// # Errors
    ///
    /// A placement that moves more; a plan within the budget with other slots, or worse than what is
    /// in force.
    pub fn keeps_the_budget(&self) -> Result<(), Violation> {
        let keeps_budget = (self.make)().capabilities().keeps_budget;
        self.for_every_request("keeps_the_budget", |case| {
            let (Some(current), Some(budget)) = (&case.current, case.budget.slots()) else {
                return Ok(());
            };
            let within = |plan: &ModelPlacement| match slots_received(current, plan) {
                moved if moved > budget => Err(format!("{moved} slots move")),
                _ => Ok(()),
            };
            let strategy = (self.make)();
            if keeps_budget {
                let answer = Answer::to(&*strategy, case).placement();
                answer.as_ref().map_or(Ok(()), within)?;
            }
            let plan = case
                .request(|request| strategy.plan_within_budget(request))
                .and_then(|plan| plan);
            match plan {
                Ok(plan) => {
                    within(&plan)?;
                    self.fits_where_it_was_cut(case, current, &plan)
                }
                Err(error @ PlacementError::Contract { .. }) => Err(error.to_string()),
                Err(_) => Ok(()),
            }
        })
    }

    fn fits_where_it_was_cut(
        &self,
        case: &Case,
        current: &ModelPlacement,
        plan: &ModelPlacement,
    ) -> Result<(), String> {
        let strategy = (self.make)();
        let capabilities = strategy.capabilities();
        let whole = case.request(|request| {
            plan.check_shape(request)?;
            if !capabilities.decides_slots {
                plan.check_slots(request)?;
            }
            strategy.plan(request)
        });
        let whole = whole
            .and_then(|plan| plan)
            .map_err(|error| error.to_string())?;
        let Some(load) = case.load.as_ref().filter(|_| *plan != whole) else {
            return Ok(());
        };
        let busiest = |placement| {
            balance::model_balance(placement, load).map(|balance| balance.aggregate.max_load)
        };
        match (busiest(current), busiest(plan)) {
            // Sums in another order.
            (Ok(before), Ok(after)) if after > before * (1.0 + 1e-9) => Err(format!(
                "cut to the budget it has {after} on the busiest ranks, the placement in force {before}"
            )),
            (Err(error), _) | (_, Err(error)) => Err(error.to_string()),
            _ => Ok(()),
        }
    }

    /// What the [`Capabilities`](moekit_placement::Capabilities) do not name does not change the
    /// answer: load, placement in force, nodes and expert groups.
    ///
    /// # Errors
    ///
    /// Two requests that differ in something undeclared only, and get two answers.
    pub fn uses_only_what_it_declares(&self) -> Result<(), Violation> {
        let declared = (self.make)().capabilities();
        self.for_every_request("uses_only_what_it_declares", |case| {
            let answer = |case: &Case| Answer::to(&*(self.make)(), case);
            let with = answer(case);
            for (declared, what, reduced) in [
                (declared.uses_load, "uses_load", case.without_load()),
                (
                    declared.uses_current,
                    "uses_current",
                    case.without_current(),
                ),
                (declared.uses_nodes, "uses_nodes", case.on_one_node()),
            ] {
                if declared || reduced == *case {
                    continue;
                }
                let without = answer(&reduced);
                if with != without {
                    return Err(format!(
                        "`{what}` is false, but the answer is {with}, and {without} without"
                    ));
                }
            }
            Ok(())
        })
    }
}

fn slots_received(current: &ModelPlacement, plan: &ModelPlacement) -> usize {
    let layers = current.layers().iter().zip(plan.layers());
    layers
        .map(|(old, new)| PlacementChange::between(old, new).slots_received())
        .sum()
}
