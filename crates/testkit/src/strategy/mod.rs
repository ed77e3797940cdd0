//! The suite of placement strategies.

mod answers;
mod configuration;
mod tables;

use std::fmt::{self, Display};
use std::panic::{AssertUnwindSafe, catch_unwind};

use moekit_placement::plugin::Descriptor;
use moekit_placement::{
    ModelPlacement, PlacementError, PlacementRequest, PlacementStrategy, plugin,
};

use crate::case::{self, Case};
use crate::{Violation, random, runner};

type Supports = dyn Fn(&PlacementRequest<'_>) -> bool;

/// What every placement strategy holds. Each property is one method.
///
/// [`strategy_conformance!`](crate::strategy_conformance) makes one test of each of them;
/// [`check`](Self::check) asks all.
pub struct StrategySuite {
    descriptor: &'static Descriptor,
    make: Box<dyn Fn() -> Box<dyn PlacementStrategy>>,
    supports: Box<Supports>,
}

impl fmt::Debug for StrategySuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StrategySuite")
            .field("descriptor", &self.descriptor)
            .finish_non_exhaustive()
    }
}

impl StrategySuite {
    /// A suite for the strategy that `make` makes. Links the plugin.
    pub fn new(
        descriptor: &'static Descriptor,
        make: impl Fn() -> Box<dyn PlacementStrategy> + 'static,
    ) -> Self {
        plugin::link(descriptor);
        Self {
            descriptor,
            make: Box::new(make),
            supports: Box::new(|_| true),
        }
    }

    /// Which requests the strategy must accept: those for which `supports` is true; without it,
    /// all. It may accept others, and must refuse the rest with an error.
    #[must_use]
    pub fn supports(mut self, supports: impl Fn(&PlacementRequest<'_>) -> bool + 'static) -> Self {
        self.supports = Box::new(supports);
        self
    }

    /// Asks for every property.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn check(&self) -> Result<(), Violation> {
        self.accepts_what_it_supports()?;
        self.covers_all_experts()?;
        self.keeps_the_slots()?;
        self.has_inverse_maps()?;
        self.is_deterministic()?;
        self.never_panics()?;
        self.refuses_clearly()?;
        self.keeps_the_budget()?;
        self.uses_only_what_it_declares()?;
        self.configuration_round_trips()?;
        self.refuses_unknown_settings()?;
        self.descriptor_fits()
    }

    fn violation(&self, property: &'static str, evidence: impl Display) -> Violation {
        Violation {
            plugin: self.descriptor.name.to_owned(),
            property,
            evidence: evidence.to_string(),
        }
    }

    /// Holds `check` against the standing requests and random ones.
    fn for_every_request(
        &self,
        property: &'static str,
        check: impl Fn(&Case) -> Result<(), String>,
    ) -> Result<(), Violation> {
        let standing = case::standing().map_err(|error| self.violation(property, error))?;
        let check = |case: &Case| check(case).map_err(|what| format!("{what}; asked: {case}"));
        standing
            .iter()
            .try_for_each(check)
            .and_then(|()| runner::check(&random::any_case(), check))
            .map_err(|what| self.violation(property, what))
    }

    /// Whether the strategy must accept a case.
    fn must_accept(&self, case: &Case) -> Result<bool, String> {
        case.request(&self.supports)
            .map_err(|error| error.to_string())
    }
}

/// What a strategy made of a request.
#[derive(Debug, PartialEq)]
enum Answer {
    Placed(ModelPlacement),
    Refused(PlacementError),
    Panicked(String),
    /// The request itself could not be made.
    NotAsked(PlacementError),
}

impl Answer {
    fn to(strategy: &dyn PlacementStrategy, case: &Case) -> Self {
        let place = |request: &PlacementRequest<'_>| {
            catch_unwind(AssertUnwindSafe(|| strategy.place(request)))
        };
        match case.request(place) {
            Err(error) => Self::NotAsked(error),
            Ok(Err(panic)) => Self::Panicked(runner::message(&*panic)),
            Ok(Ok(Err(error))) => Self::Refused(error),
            Ok(Ok(Ok(placement))) => Self::Placed(placement),
        }
    }

    fn placement(self) -> Option<ModelPlacement> {
        match self {
            Self::Placed(placement) => Some(placement),
            _ => None,
        }
    }
}

impl Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Placed(placement) => {
                let layers: Vec<_> = placement.layers().iter().map(case::slots_by_rank).collect();
                write!(f, "{layers:?}")
            }
            Self::Refused(error) => write!(f, "the error `{error}`"),
            Self::Panicked(message) => write!(f, "the panic `{message}`"),
            Self::NotAsked(error) => write!(f, "an invalid request: `{error}`"),
        }
    }
}
