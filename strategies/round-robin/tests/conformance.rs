//! The conformance suite on `round_robin`.

use moekit_strategy_round_robin::RoundRobin;

moekit_testkit::strategy_conformance! {
    plugin: moekit_strategy_round_robin,
    strategy: RoundRobin {},
}
