//! Conformance suites that a plugin runs on itself.
//!
//! One macro call in a test file gives one `#[test]` per property:
//!
//! ```
//! # mod my_strategy {
//! #     use moekit_placement::*;
//! #     #[derive(Debug, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
//! #     #[serde(deny_unknown_fields)]
//! #     pub struct MyStrategy {}
//! #     #[typetag::serde(name = "mine")]
//! #     impl PlacementStrategy for MyStrategy {
//! #         fn place(&self, r: &PlacementRequest<'_>) -> Result<ModelPlacement, PlacementError> {
//! #             let slots = (0..r.num_slots()).map(|s| s % r.num_logical_experts()).collect();
//! #             let layer = Placement::new(r.num_logical_experts(), slots, r.rank_offsets())?;
//! #             ModelPlacement::new(vec![layer; r.num_layers()])
//! #         }
//! #     }
//! #     register_strategy! { MyStrategy, name: "mine", summary: "An example", example: MyStrategy {} }
//! # }
//! # use my_strategy::MyStrategy;
//! // tests/conformance.rs
//! moekit_testkit::strategy_conformance! {
//!     plugin: my_strategy,
//!     strategy: MyStrategy {},
//! }
//! # moekit_testkit::StrategySuite::new(&my_strategy::DESCRIPTOR, || Box::new(MyStrategy {})).check()?;
//! # Ok::<(), moekit_testkit::Violation>(())
//! ```
//!
//! The suite asks a fixed list of requests with all the corners that people forget, then random
//! ones (256, or as many as `PROPTEST_CASES` says) from a fixed seed, and shrinks those that fail.

mod case;
mod descriptor;
mod quant;
mod random;
mod runner;
mod samples;
mod strategy;
mod violation;

pub use quant::{QuantSample, QuantSuite};
pub use samples::{expert, layer_spec};
pub use strategy::StrategySuite;
pub use violation::Violation;

/// Tests a placement strategy: one `#[test]` per property of [`StrategySuite`].
///
/// - `plugin` - the path of the crate (or module) that holds the `DESCRIPTOR`.
/// - `strategy` - an expression that makes the strategy, evaluated anew for every use.
/// - `supports` - optional, see [`StrategySuite::supports`].
///
/// One module holds one call, since its tests are functions of that module. See the
/// [crate's example](crate).
#[macro_export]
macro_rules! strategy_conformance {
    (plugin: $plugin:path, strategy: $strategy:expr $(, supports: $supports:expr)? $(,)?) => {
        fn strategy_suite() -> $crate::StrategySuite {
            let descriptor = {
                use $plugin as plugin;
                &plugin::DESCRIPTOR
            };
            let suite = $crate::StrategySuite::new(descriptor, || Box::new($strategy));
            $(let suite = suite.supports($supports);)?
            suite
        }

        $crate::__one_test_per_property! {
            strategy_suite:
            accepts_what_it_supports,
            covers_all_experts,
            keeps_the_slots,
            has_inverse_maps,
            is_deterministic,
            never_panics,
            refuses_clearly,
            keeps_the_budget,
            uses_only_what_it_declares,
            configuration_round_trips,
            refuses_unknown_settings,
            descriptor_fits,
        }
    };
}

/// Tests a quantization backend: one `#[test]` per property of [`QuantSuite`].
///
/// - `plugin` - the path of the crate (or module) that holds the `DESCRIPTOR`.
/// - `backend` - an expression that makes the backend, evaluated anew for every use.
/// - `sample` - an expression that makes a [`QuantSample`], a small layer in the backend's format.
///
/// One module holds one call, since its tests are functions of that module.
#[macro_export]
macro_rules! quant_conformance {
    (plugin: $plugin:path, backend: $backend:expr, sample: $sample:expr $(,)?) => {
        fn quant_suite() -> $crate::QuantSuite {
            let descriptor = {
                use $plugin as plugin;
                &plugin::DESCRIPTOR
            };
            $crate::QuantSuite::new(descriptor, || Box::new($backend), $sample)
        }

        $crate::__one_test_per_property! {
            quant_suite:
            fills_every_slot,
            reads_local_experts_only,
            is_deterministic,
            refuses_missing_tensors,
            refuses_other_shapes,
            refuses_other_types,
            refuses_truncated_tensors,
            refuses_foreign_routing,
            never_panics,
            configuration_round_trips,
            descriptor_fits,
        }
    };
}

#[doc(hidden)]
#[macro_export]
macro_rules! __one_test_per_property {
    ($suite:ident: $($property:ident),+ $(,)?) => {
        $(
            #[test]
            fn $property() {
                if let Err(violation) = $suite().$property() {
                    panic!("{violation}");
                }
            }
        )+
    };
}
