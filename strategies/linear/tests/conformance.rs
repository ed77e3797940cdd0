//! The conformance suite on `linear`.

use moekit_strategy_linear::Linear;

moekit_testkit::strategy_conformance! {
    plugin: moekit_strategy_linear,
    strategy: Linear {},
}
