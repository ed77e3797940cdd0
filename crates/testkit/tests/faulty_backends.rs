//! Every property of the quantization suite can fail: backends with one fault each.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use moekit_placement::{Placement, Topology};
use moekit_quant::{
    CodeFormat, ExpertLayout, ExpertLinear, ExpertWeights, LinearSite, MemorySource, MlpNames,
    MoeLayerSpec, PackedMatrix, QuantBackend, QuantError, RouterSpec, TensorDtype, TensorSource,
    load_float_linear, load_linears, register_quant_backend,
};
use moekit_routing::{ExpertRouting, Rank, RoutingTable};
use moekit_testkit::{QuantSample, QuantSuite, Violation};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

const EXPERTS: usize = 5;
const HIDDEN: usize = 4;
const INTERMEDIATE: usize = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
enum Fault {
    None,
    IgnoresRouting,
    ReadsEverything,
    CountsItsCalls,
    ForgivesMissing,
    NamesNothing,
    IgnoresShape,
    IgnoresType,
    PadsWithZeros,
    PanicsAtNan,
}

/// Unquantized, but for one fault.
#[derive(Debug, Serialize, Deserialize, JsonSchema)]
struct Faulty {
    fault: Fault,
    /// Added to the first weight. Not written down.
    #[serde(skip)]
    offset: u32,
    #[serde(skip)]
    calls: AtomicU32,
}

impl Faulty {
    fn new(fault: Fault) -> Self {
        Self {
            fault,
            offset: 0,
            calls: AtomicU32::new(0),
        }
    }

    fn linear(
        &self,
        site: &LinearSite,
        tensors: &dyn TensorSource,
    ) -> Result<ExpertLinear, QuantError> {
        let name = site.tensor("weight");
        let zeros = || from_bytes(site, vec![0; 4 * HIDDEN * INTERMEDIATE]);
        match (self.fault, load_float_linear(site, tensors)) {
            (Fault::ForgivesMissing, Err(QuantError::MissingTensor { .. }))
            | (Fault::PadsWithZeros, Err(QuantError::Range { .. })) => zeros(),
            (Fault::NamesNothing, Err(QuantError::MissingTensor { needed, .. })) => {
                Err(QuantError::MissingTensor {
                    tensor: "?".to_owned(),
                    needed,
                })
            }
            (Fault::IgnoresShape, Err(QuantError::Shape { .. }))
            | (Fault::IgnoresType, Err(QuantError::Dtype { .. })) => {
                let bytes = tensors.read(&name, 0..4 * HIDDEN * INTERMEDIATE)?;
                from_bytes(site, bytes.to_vec())
            }
            (Fault::PanicsAtNan, Ok(linear)) => {
                let mut row = vec![0.0; linear.weight.cols()];
                linear.weight.dequantize_row(0, &mut row)?;
                assert!(!row.contains(&f32::NAN) && row.iter().all(|value| !value.is_nan()));
                Ok(linear)
            }
            (Fault::CountsItsCalls, Ok(linear)) => {
                let calls = self.calls.fetch_add(1, Ordering::Relaxed);
                Ok(ExpertLinear::new(
                    linear.weight.with_global_scale(calls as f32),
                ))
            }
            (Fault::ReadsEverything, linear) => {
                for expert in 0..EXPERTS {
                    for projection in ["w1", "w2", "w3"] {
                        let name = format!("experts.{expert}.{projection}.weight");
                        tensors.read(&name, 0..4 * HIDDEN * INTERMEDIATE)?;
                    }
                }
                linear
            }
            (_, linear) => Ok(ExpertLinear::new(
                linear?.weight.with_global_scale(1.0 + self.offset as f32),
            )),
        }
    }
}

fn from_bytes(site: &LinearSite, bytes: Vec<u8>) -> Result<ExpertLinear, QuantError> {
    let weight = PackedMatrix::contiguous(CodeFormat::F32, site.shape(), bytes.into())?;
    Ok(ExpertLinear::new(weight))
}

/// A rank that holds all experts, whatever anyone says.
#[derive(Debug)]
struct Everything;

impl ExpertRouting for Everything {
    fn rank(&self) -> Rank {
        Rank::new(0)
    }

    fn routing_table(&self) -> Arc<RoutingTable> {
        let all: Vec<usize> = (0..EXPERTS).collect();
        let placement = Placement::from_ranks(EXPERTS, &[all]).unwrap();
        Arc::new(RoutingTable::new(placement, Topology::new(1).unwrap(), 0, 0).unwrap())
    }
}

#[typetag::serde(name = "faulty")]
impl QuantBackend for Faulty {
    fn load_experts(
        &self,
        layer: &MoeLayerSpec,
        tensors: &dyn TensorSource,
        routing: &dyn ExpertRouting,
    ) -> Result<ExpertWeights, QuantError> {
        let routing = match self.fault {
            Fault::IgnoresRouting => &Everything,
            _ => routing,
        };
        load_linears(layer, tensors, routing, &|site, tensors| {
            self.linear(site, tensors)
        })
    }
}

register_quant_backend! {
    Faulty,
    name: "faulty",
    summary: "Unquantized with a fault",
    example: Faulty::new(Fault::None),
}

/// Expert `e` has weights `e + 1`, `e + 1.125`, ...; all alike if `alike`.
fn sample(alike: bool) -> QuantSample {
    let layout = ExpertLayout::PerExpert {
        module: "experts".to_owned(),
        names: MlpNames::w123(),
        bias: false,
    };
    let sizes = [EXPERTS, 2, HIDDEN, INTERMEDIATE];
    let layer = MoeLayerSpec::new(0, sizes, layout, RouterSpec::new("gate.weight"));
    let mut tensors = MemorySource::default();
    for expert in 0..EXPERTS {
        let first = if alike { 1.0 } else { 1.0 + expert as f32 };
        for (name, shape) in [
            ("w1", [INTERMEDIATE, HIDDEN]),
            ("w3", [INTERMEDIATE, HIDDEN]),
            ("w2", [HIDDEN, INTERMEDIATE]),
        ] {
            let values = (0..HIDDEN * INTERMEDIATE).map(|i| first + 0.125 * i as f32);
            let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
            tensors.insert(
                format!("experts.{expert}.{name}.weight"),
                TensorDtype::F32,
                shape,
                bytes,
            );
        }
    }
    QuantSample::new(layer, tensors)
}

fn suite(fault: Fault) -> QuantSuite {
    QuantSuite::new(
        &DESCRIPTOR,
        move || Box::new(Faulty::new(fault)),
        sample(false),
    )
}

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
fn wrong_slots_are_found() {
    let found = evidence(
        suite(Fault::IgnoresRouting).fills_every_slot(),
        "fills_every_slot",
    );
    assert!(found.contains("[4, 3, 2, 1, 0] gets 5 slots"), "{found}");
}

#[test]
fn a_sample_that_shows_nothing_is_found() {
    let alike = QuantSuite::new(
        &DESCRIPTOR,
        || Box::new(Faulty::new(Fault::None)),
        sample(true),
    );
    let found = evidence(alike.fills_every_slot(), "fills_every_slot");
    assert!(found.contains("0 and 1 have the same weights"), "{found}");
}

#[test]
fn reading_too_much_is_found() {
    let property = "reads_local_experts_only";
    let found = evidence(
        suite(Fault::ReadsEverything).reads_local_experts_only(),
        property,
    );
    assert!(found.contains("[0] of 5 reads 720 of 720 bytes"), "{found}");
}

#[test]
fn moods_are_found() {
    evidence(
        suite(Fault::CountsItsCalls).is_deterministic(),
        "is_deterministic",
    );
}

#[test]
fn missing_tensors_that_are_forgiven_are_found() {
    let property = "refuses_missing_tensors";
    let found = evidence(
        suite(Fault::ForgivesMissing).refuses_missing_tensors(),
        property,
    );
    assert!(
        found.contains("nobody minds the change of `experts.0.w1.weight`"),
        "{found}"
    );
    let found = evidence(
        suite(Fault::NamesNothing).refuses_missing_tensors(),
        property,
    );
    assert!(
        found.contains("does not name it: tensor `?` is missing"),
        "{found}"
    );
    let optional = QuantSuite::new(
        &DESCRIPTOR,
        || Box::new(Faulty::new(Fault::ForgivesMissing)),
        sample(false).with_optional(".weight"),
    );
    assert_eq!(optional.refuses_missing_tensors(), Ok(()));
}

#[test]
fn wrong_tensors_that_are_accepted_are_found() {
    evidence(
        suite(Fault::IgnoresShape).refuses_other_shapes(),
        "refuses_other_shapes",
    );
    evidence(
        suite(Fault::IgnoresType).refuses_other_types(),
        "refuses_other_types",
    );
    evidence(
        suite(Fault::PadsWithZeros).refuses_truncated_tensors(),
        "refuses_truncated_tensors",
    );
}

#[test]
fn foreign_routing_that_is_accepted_is_found() {
    let found = evidence(
        suite(Fault::IgnoresRouting).refuses_foreign_routing(),
        "refuses_foreign_routing",
    );
    assert!(
        found.contains("an expert more than the layer has is accepted"),
        "{found}"
    );
}

#[test]
fn panics_are_found() {
    let found = evidence(suite(Fault::PanicsAtNan).never_panics(), "never_panics");
    assert!(found.contains("was damaged by"), "{found}");
}

#[test]
fn settings_that_are_not_written_down_are_found() {
    let forgetful = || Faulty {
        offset: 3,
        ..Faulty::new(Fault::None)
    };
    let suite = QuantSuite::new(&DESCRIPTOR, move || Box::new(forgetful()), sample(false));
    let found = evidence(
        suite.configuration_round_trips(),
        "configuration_round_trips",
    );
    assert!(found.contains("loads other weights"), "{found}");
}
