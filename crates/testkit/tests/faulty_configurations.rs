//! Every property of a strategy's configuration and descriptor can fail.

use moekit_placement::plugin::Descriptor;
use moekit_placement::{
    ModelPlacement, Placement, PlacementError, PlacementRequest, PlacementStrategy, STRATEGY_KIND,
    typetag,
};
use moekit_testkit::StrategySuite;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

fn rotate(request: &PlacementRequest<'_>, by: u64) -> Result<ModelPlacement, PlacementError> {
    let experts = request.num_logical_experts();
    let slots = (0..request.num_slots())
        .map(|slot| (slot + by as usize) % experts)
        .collect();
    let layer = Placement::new(experts, slots, request.rank_offsets())?;
    ModelPlacement::new(vec![layer; request.num_layers()])
}

/// Has a setting that it does not write down.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct Forgetful {
    kept: f64,
    by_layer: Vec<Option<u64>>,
    #[serde(skip)]
    forgotten: u64,
}

#[typetag::serde(name = "forgetful")]
impl PlacementStrategy for Forgetful {
    fn place(&self, request: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
        rotate(request, (self.kept as u64 + self.forgotten) % 7)
    }
}

fn plugin(
    name: &'static str,
    schema: fn() -> Value,
    example: fn() -> Value,
) -> &'static Descriptor {
    Box::leak(Box::new(Descriptor {
        kind: STRATEGY_KIND,
        name,
        summary: "Does not keep its word",
        crate_name: "testkit",
        crate_version: "0.0.0",
        schema,
        example,
    }))
}

fn good_schema() -> Value {
    schemars::schema_for!(Forgetful).to_value()
}

fn good_example() -> Value {
    json!({"strategy": "forgetful", "kept": 3.0, "by_layer": []})
}

/// All faults of one plugin in one test: one program can link one plugin of a name.
#[test]
fn configurations_that_lose_or_take_too_much_are_found() {
    let descriptor = plugin("forgetful", good_schema, good_example);
    let suite = |kept: f64, by_layer: &'static [Option<u64>], forgotten: u64| {
        let by_layer = by_layer.to_vec();
        StrategySuite::new(descriptor, move || {
            Box::new(Forgetful {
                kept,
                by_layer: by_layer.clone(),
                forgotten,
            })
        })
    };
    let good = suite(1.0, &[Some(1)], 0);
    assert_eq!(good.configuration_round_trips(), Ok(()));
    assert_eq!(good.descriptor_fits(), Ok(()));

    let lost = suite(1.0, &[], 2).configuration_round_trips().unwrap_err();
    assert!(lost.evidence.contains("but through JSON"), "{lost}");
    let not_json = suite(f64::INFINITY, &[], 0)
        .configuration_round_trips()
        .unwrap_err();
    assert!(
        not_json.evidence.contains("refused through JSON"),
        "{not_json}"
    );
    let not_toml = suite(1.0, &[None], 0)
        .configuration_round_trips()
        .unwrap_err();
    assert!(
        not_toml.evidence.contains("cannot be written as TOML"),
        "{not_toml}"
    );
    let taken = good.refuses_unknown_settings().unwrap_err();
    assert!(taken.evidence.contains("is accepted"), "{taken}");
}

macro_rules! named {
    ($type:ident, $name:literal) => {
        #[derive(Debug, Serialize, Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $type {
            by: u64,
        }

        #[typetag::serde(name = $name)]
        impl PlacementStrategy for $type {
            fn place(&self, r: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
                rotate(r, self.by % 7)
            }
        }
    };
}

named!(OtherName, "other-name");
named!(NoSchema, "no-schema");
named!(PoorSchema, "poor-schema");
named!(NoExample, "no-example");
named!(OldExample, "old-example");

#[test]
fn descriptors_that_do_not_fit_are_found() {
    fn object() -> Value {
        json!({"type": "object", "properties": {"by": {"type": "integer"}}})
    }
    let fits = |descriptor, make: fn() -> Box<dyn PlacementStrategy>| {
        StrategySuite::new(descriptor, make)
            .descriptor_fits()
            .unwrap_err()
            .evidence
    };
    let found = fits(
        plugin(
            "another-name",
            object,
            || json!({"strategy": "other-name", "by": 1}),
        ),
        || Box::new(OtherName { by: 1 }),
    );
    assert!(
        found.contains("name is `another-name`, the plugin's `other-name`"),
        "{found}"
    );
    let found = fits(
        plugin(
            "no-schema",
            Value::default,
            || json!({"strategy": "no-schema", "by": 1}),
        ),
        || Box::new(NoSchema { by: 1 }),
    );
    assert!(found.contains("the schema is null"), "{found}");
    let found = fits(
        plugin(
            "poor-schema",
            || json!({}),
            || json!({"strategy": "poor-schema", "by": 1}),
        ),
        || Box::new(PoorSchema { by: 1 }),
    );
    assert!(
        found.contains("lacks the example's setting `by`"),
        "{found}"
    );
    let found = fits(plugin("no-example", object, Value::default), || {
        Box::new(NoExample { by: 1 })
    });
    assert!(found.contains("the example null is refused"), "{found}");
    let found = fits(
        plugin(
            "old-example",
            object,
            || json!({"strategy": "old-example", "rotate": 1}),
        ),
        || Box::new(OldExample { by: 1 }),
    );
    assert!(found.contains("unknown field `rotate`"), "{found}");
}
