//! Every property of the strategy suite can fail: strategies with one fault each.

use std::sync::atomic::{AtomicUsize, Ordering};

use moekit_placement::{
    Capabilities, ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy,
    register_strategy, typetag,
};
use moekit_testkit::{StrategySuite, Violation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum Fault {
    None,
    RefusesAll,
    DropsALayer,
    DropsTheLastExpert,
    FillsTheFirstRank,
    AddsARank,
    CountsItsCalls,
    DividesByTheLoad,
    RunsOutOfExperts,
    SaysNothing,
    BlamesAnother,
    BlamesItself,
    IgnoresTheBudget,
    HidesItsUseOfLoad,
    HidesItsUseOfCurrent,
    HidesItsUseOfNodes,
}

/// Linear, but for one fault.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Faulty {
    fault: Fault,
    #[serde(skip)]
    calls: AtomicUsize,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            calls: AtomicUsize::new(0),
        }
    }

    fn refuse(&self, request: &PlacementRequest<'_>) -> Result<(), PlacementError> {
        let ranks = request.topology().num_ranks();
        let refused = |strategy: &str, message: &str| {
            if ranks == 3 {
                Err(PlacementError::precondition(strategy, message))
            } else {
                Ok(())
            }
        };
        match self.fault {
            Fault::RefusesAll => Err(PlacementError::precondition("faulty", "not today")),
            Fault::SaysNothing => refused("faulty", " "),
            Fault::BlamesAnother => refused("linear", "3 ranks, at most 2"),
            Fault::BlamesItself => Err(PlacementError::Contract {
                strategy: "faulty".to_owned(),
                message: "3 ranks, at most 2".to_owned(),
            }),
            _ => Ok(()),
        }
    }

    /// By how much the experts are rotated.
    fn shift(&self, request: &PlacementRequest<'_>) -> usize {
        let load = request
            .load()
            .and_then(|load| load.layer(0))
            .unwrap_or_default();
        match self.fault {
            Fault::CountsItsCalls => self.calls.fetch_add(1, Ordering::Relaxed),
            Fault::DividesByTheLoad => {
                let tokens = load.iter().copied().fold(0.0, f64::max) as usize;
                if load.is_empty() { 0 } else { 100 / tokens }
            }
            Fault::RunsOutOfExperts => {
                let experts: Vec<usize> = (0..request.num_logical_experts()).collect();
                experts[request.topology().num_ranks() - 1]
            }
            Fault::IgnoresTheBudget => 1,
            Fault::HidesItsUseOfLoad => usize::from(load.first() > load.last()),
            Fault::HidesItsUseOfCurrent => usize::from(request.current().is_some()),
            Fault::HidesItsUseOfNodes => request.topology().num_nodes() - 1,
            _ => 0,
        }
    }
}

#[typetag::serde(name = "faulty")]
impl PlacementStrategy for Faulty {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        self.refuse(request)?;
        let (mut experts, mut layers) = (request.num_logical_experts(), request.num_layers());
        let mut offsets = request.rank_offsets();
        match self.fault {
            Fault::DropsALayer => layers = (layers - 1).max(1),
            Fault::DropsTheLastExpert => experts = (experts - 1).max(1),
            Fault::AddsARank => offsets.push(request.num_slots()),
            Fault::FillsTheFirstRank => offsets[1..].fill(request.num_slots()),
            _ => {}
        }
        let shift = self.shift(request);
        let slots = (0..request.num_slots())
            .map(|slot| (slot + shift) % experts)
            .collect();
        ModelPlacement::new(vec![Placement::new(experts, slots, offsets)?; layers])
    }

    fn capabilities(&self) -> Capabilities {
        let mut capabilities = Capabilities::default();
        capabilities.keeps_budget = self.fault == Fault::IgnoresTheBudget;
        capabilities
    }
}

register_strategy! {
    Faulty,
    name: "faulty",
    summary: "Linear with a fault",
    example: Faulty::new(Fault::None),
}

fn suite(fault: Fault) -> StrategySuite {
    StrategySuite::new(&DESCRIPTOR, move || Box::new(Faulty::new(fault)))
}

/// The evidence against a fault, which must be `property`.
fn evidence(result: Result<(), Violation>, property: &str) -> String {
    let violation = result.expect_err(property);
    assert_eq!(
        (violation.plugin.as_str(), violation.property),
        ("faulty", property)
    );
    violation.evidence
}

#[test]
fn without_a_fault_all_holds() {
    assert_eq!(suite(Fault::None).check(), Ok(()));
}

#[test]
fn refusing_what_is_supported_is_found() {
    let found = evidence(
        suite(Fault::RefusesAll).accepts_what_it_supports(),
        "accepts_what_it_supports",
    );
    assert!(found.contains("not today"), "{found}");
    let picky = suite(Fault::RefusesAll).supports(|request| request.topology().num_ranks() > 4);
    assert!(picky.accepts_what_it_supports().is_err());
}

#[test]
fn supporting_nothing_is_found() {
    let none = suite(Fault::RefusesAll).supports(|_| false);
    let found = evidence(none.accepts_what_it_supports(), "accepts_what_it_supports");
    assert!(found.contains("nothing was tested"), "{found}");
}

#[test]
fn losing_layers_and_experts_is_found() {
    let found = evidence(
        suite(Fault::DropsALayer).covers_all_experts(),
        "covers_all_experts",
    );
    assert!(found.contains("1 layers were placed"), "{found}");
    let found = evidence(
        suite(Fault::DropsTheLastExpert).covers_all_experts(),
        "covers_all_experts",
    );
    assert!(
        found.contains("holds the experts [0, 1, 2, 3, 4, 5, 6]"),
        "{found}"
    );
}

#[test]
fn other_slots_and_ranks_are_found() {
    let found = evidence(
        suite(Fault::FillsTheFirstRank).keeps_the_slots(),
        "keeps_the_slots",
    );
    assert!(found.contains("[8, 0], not [4, 4]"), "{found}");
    evidence(suite(Fault::AddsARank).keeps_the_slots(), "keeps_the_slots");
    let found = evidence(
        suite(Fault::AddsARank).has_inverse_maps(),
        "has_inverse_maps",
    );
    assert!(
        found.contains("the placement has 2 ranks, the topology 1"),
        "{found}"
    );
}

#[test]
fn moods_are_found() {
    let found = evidence(
        suite(Fault::CountsItsCalls).is_deterministic(),
        "is_deterministic",
    );
    assert!(found.contains("the second time"), "{found}");
}

#[test]
fn panics_are_found() {
    let found = evidence(
        suite(Fault::DividesByTheLoad).never_panics(),
        "never_panics",
    );
    assert!(
        found.contains("divide by zero") && found.contains("load [["),
        "{found}"
    );
    let found = evidence(
        suite(Fault::RunsOutOfExperts).never_panics(),
        "never_panics",
    );
    assert!(found.contains("index out of bounds"), "{found}");
}

#[test]
fn unhelpful_errors_are_found() {
    for fault in [
        Fault::SaysNothing,
        Fault::BlamesAnother,
        Fault::BlamesItself,
    ] {
        evidence(suite(fault).refuses_clearly(), "refuses_clearly");
    }
}

#[test]
fn a_broken_budget_is_found() {
    let found = evidence(
        suite(Fault::IgnoresTheBudget).keeps_the_budget(),
        "keeps_the_budget",
    );
    assert!(
        found.contains("slots move") && found.contains("budget Slots(0)"),
        "{found}"
    );
}

#[test]
fn undeclared_use_is_found() {
    for (fault, what) in [
        (Fault::HidesItsUseOfLoad, "uses_load"),
        (Fault::HidesItsUseOfCurrent, "uses_current"),
        (Fault::HidesItsUseOfNodes, "uses_nodes"),
    ] {
        let found = evidence(
            suite(fault).uses_only_what_it_declares(),
            "uses_only_what_it_declares",
        );
        assert!(found.contains(what), "{found}");
    }
}
