//! The suite of quantization backends.

mod refusals;
mod sample;
mod weights;

use std::fmt::{self, Display};

use moekit_quant::plugin::{self, Descriptor};
use moekit_quant::{QUANT_BACKEND_KIND, QuantBackend, backend_for, linked_quant_backends};
use serde_json::Value;

use crate::{Violation, descriptor};

pub use sample::QuantSample;
use sample::{Loaded, Numbers, View};

/// The key that names the backend.
const TAG: &str = "quant_method";

/// What every quantization backend holds. Each property is one method.
///
/// [`quant_conformance!`](crate::quant_conformance) makes one test of each of them;
/// [`check`](Self::check) asks all. Which numbers are right the suite cannot know: a test with
/// numbers from the format's own library belongs beside it.
pub struct QuantSuite {
    descriptor: &'static Descriptor,
    make: Box<dyn Fn() -> Box<dyn QuantBackend>>,
    sample: QuantSample,
}

impl fmt::Debug for QuantSuite {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("QuantSuite")
            .field("descriptor", &self.descriptor)
            .finish_non_exhaustive()
    }
}

impl QuantSuite {
    /// A suite for the backend that `make` makes, on a layer in its format. Links the plugin.
    pub fn new(
        descriptor: &'static Descriptor,
        make: impl Fn() -> Box<dyn QuantBackend> + 'static,
        sample: QuantSample,
    ) -> Self {
        plugin::link(descriptor);
        Self {
            descriptor,
            make: Box::new(make),
            sample,
        }
    }

    /// Asks for every property.
    ///
    /// # Errors
    ///
    /// The first violation.
    pub fn check(&self) -> Result<(), Violation> {
        self.fills_every_slot()?;
        self.reads_local_experts_only()?;
        self.is_deterministic()?;
        self.refuses_missing_tensors()?;
        self.refuses_other_shapes()?;
        self.refuses_other_types()?;
        self.refuses_truncated_tensors()?;
        self.refuses_foreign_routing()?;
        self.never_panics()?;
        self.configuration_round_trips()?;
        self.descriptor_fits()
    }

    /// A backend that went through JSON, as it comes from a checkpoint's `config.json`, writes the
    /// same configuration and loads the same weights.
    ///
    /// # Errors
    ///
    /// A configuration that does not come back, or other weights.
    pub fn configuration_round_trips(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "configuration_round_trips";
        self.round_trip()
            .map_err(|what| self.violation(PROPERTY, what))
    }

    fn round_trip(&self) -> Result<(), String> {
        let made = (self.make)();
        let config = to_json(&*made)?;
        let copy = backend_for(Some(&config)).map_err(|e| format!("{config} is refused: {e}"))?;
        let written = to_json(&*copy)?;
        if written != config {
            return Err(format!("{config} comes back as {written}"));
        }
        if self.all_numbers(&*copy)? != self.all_numbers(&*made)? {
            return Err(format!("through JSON, {config} loads other weights"));
        }
        Ok(())
    }

    /// The descriptor has the backend's name, the registry finds it, its example makes a backend of
    /// that name, and its schema knows the example's settings.
    ///
    /// # Errors
    ///
    /// What does not fit.
    pub fn descriptor_fits(&self) -> Result<(), Violation> {
        descriptor::is_complete(self.descriptor, QUANT_BACKEND_KIND, (self.make)().name())
            .and_then(|()| {
                let registry = linked_quant_backends().map_err(|error| error.to_string())?;
                descriptor::is_found(self.descriptor, &registry)
            })
            .and_then(|()| {
                let example = (self.descriptor.example)();
                let backend = backend_for(Some(&example))
                    .map_err(|error| format!("the example {example} is refused: {error}"))?;
                let written = to_json(&*backend)?;
                if written == example {
                    Ok(())
                } else {
                    Err(format!("the example {example} comes back as {written}"))
                }
            })
            .and_then(|()| descriptor::schema_knows_example(self.descriptor, TAG))
            .map_err(|what| self.violation("descriptor_fits", what))
    }

    fn violation(&self, property: &'static str, evidence: impl Display) -> Violation {
        Violation {
            plugin: self.descriptor.name.to_owned(),
            property,
            evidence: evidence.to_string(),
        }
    }

    fn num_experts(&self) -> usize {
        self.sample.layer.num_experts
    }

    fn all_on_one_rank(&self) -> Result<View, String> {
        View::of_all(self.num_experts())
    }

    fn load_all(&self) -> Result<Loaded, String> {
        Ok(self.sample.load(&*(self.make)(), &self.all_on_one_rank()?))
    }

    /// The numbers of every expert of the sample, in order.
    fn all_numbers(&self, backend: &dyn QuantBackend) -> Result<Vec<Numbers>, String> {
        numbers(self.sample.load(backend, &self.all_on_one_rank()?))
    }
}

fn to_json(backend: &dyn QuantBackend) -> Result<Value, String> {
    let name = backend.typetag_name();
    let config = serde_json::to_value(backend)
        .map_err(|error| format!("`{name}` cannot be written as JSON: {error}"))?;
    match config.get(TAG).and_then(Value::as_str) {
        Some(tag) if tag == name => Ok(config),
        _ => Err(format!(
            "{config} should have the key `{TAG}` with the value `{name}`"
        )),
    }
}

/// The numbers in each slot.
fn numbers(loaded: Loaded) -> Result<Vec<Numbers>, String> {
    let weights = loaded
        .weights
        .map_err(|error| format!("the sample is refused: {error}"))?;
    let experts = weights.experts.iter();
    experts
        .map(|expert| Numbers::of(expert).map_err(|error| error.to_string()))
        .collect()
}
