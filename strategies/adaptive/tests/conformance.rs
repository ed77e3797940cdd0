//! The conformance suite.

use moekit_strategy_adaptive::Adaptive;

moekit_testkit::strategy_conformance! {
    plugin: moekit_strategy_adaptive,
    strategy: Adaptive::default(),
}
