//! Properties of a strategy as a configuration, and of its descriptor.

use moekit_placement::{PlacementStrategy, STRATEGY_KIND, linked_strategies, strategy_from_value};
use serde_json::Value;

use super::{Answer, StrategySuite};
use crate::case::Case;
use crate::{Violation, descriptor};

/// The key that names the strategy.
const TAG: &str = "strategy";
const NO_SETTING: &str = "a setting that no strategy has";

impl StrategySuite {
    /// A strategy that went through JSON or TOML is the same strategy: it writes the same
    /// configuration and gives the same answers.
    ///
    /// # Errors
    ///
    /// A configuration that does not come back, or another answer.
    pub fn configuration_round_trips(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "configuration_round_trips";
        let made = (self.make)();
        let copies = round_trips(&*made).map_err(|what| self.violation(PROPERTY, what))?;
        self.for_every_request(PROPERTY, |case| {
            let original = Answer::to(&*made, case);
            for (format, copy) in &copies {
                let answer = Answer::to(&**copy, case);
                if answer != original {
                    return Err(format!("{original}, but through {format} {answer}"));
                }
            }
            Ok(())
        })
    }

    /// A misspelled setting is an error, not a default in silence: the configuration struct has
    /// `#[serde(deny_unknown_fields)]`.
    ///
    /// # Errors
    ///
    /// If a setting that does not exist is accepted.
    pub fn refuses_unknown_settings(&self) -> Result<(), Violation> {
        const PROPERTY: &str = "refuses_unknown_settings";
        let mut config = to_json(&*(self.make)()).map_err(|what| self.violation(PROPERTY, what))?;
        if let Some(settings) = config.as_object_mut() {
            settings.insert(NO_SETTING.to_owned(), Value::Bool(true));
        }
        match strategy_from_value(config.clone()) {
            Err(_) => Ok(()),
            Ok(_) => Err(self.violation(PROPERTY, format!("{config} is accepted"))),
        }
    }

    /// The descriptor has the strategy's name, the registry finds it, its example makes a strategy
    /// of that name, and its schema knows the example's settings.
    ///
    /// # Errors
    ///
    /// What does not fit.
    pub fn descriptor_fits(&self) -> Result<(), Violation> {
        descriptor::is_complete(self.descriptor, STRATEGY_KIND, (self.make)().name())
            .and_then(|()| self.registry_finds_it())
            .and_then(|()| self.example_works())
            .and_then(|()| descriptor::schema_knows_example(self.descriptor, TAG))
            .map_err(|what| self.violation("descriptor_fits", what))
    }

    fn registry_finds_it(&self) -> Result<(), String> {
        let registry = linked_strategies().map_err(|error| error.to_string())?;
        descriptor::is_found(self.descriptor, &registry)
    }

    fn example_works(&self) -> Result<(), String> {
        let example = (self.descriptor.example)();
        let strategy = strategy_from_value(example.clone())
            .map_err(|error| format!("the example {example} is refused: {error}"))?;
        let written = to_json(&*strategy)?;
        if written != example {
            return Err(format!("the example {example} comes back as {written}"));
        }
        match Answer::to(&*strategy, &Case::new(1, 8, 2)) {
            panic @ Answer::Panicked(_) => Err(format!("the example {example} answers {panic}")),
            _ => Ok(()),
        }
    }
}

fn to_json(strategy: &dyn PlacementStrategy) -> Result<Value, String> {
    let name = strategy.typetag_name();
    let config = serde_json::to_value(strategy)
        .map_err(|error| format!("`{name}` cannot be written as JSON: {error}"))?;
    match config.get(TAG).and_then(Value::as_str) {
        Some(tag) if tag == name => Ok(config),
        _ => Err(format!(
            "{config} should have the key `{TAG}` with the value `{name}`"
        )),
    }
}

type Copies = Vec<(&'static str, Box<dyn PlacementStrategy>)>;

/// The strategy through JSON, and through TOML as a configuration file holds it.
fn round_trips(strategy: &dyn PlacementStrategy) -> Result<Copies, String> {
    let json = to_json(strategy)?;
    let text = toml::to_string(strategy)
        .map_err(|error| format!("{json} cannot be written as TOML: {error}"))?;
    let from_toml: Value = toml::from_str(&text).map_err(|error| format!("{error}\n{text}"))?;
    let mut copies = Vec::new();
    for (format, config) in [("JSON", json.clone()), ("TOML", from_toml)] {
        let copy = strategy_from_value(config)
            .map_err(|error| format!("{json} is refused through {format}: {error}"))?;
        let written = to_json(&*copy)?;
        if written != json {
            return Err(format!("{json} comes back through {format} as {written}"));
        }
        copies.push((format, copy));
    }
    Ok(copies)
}
