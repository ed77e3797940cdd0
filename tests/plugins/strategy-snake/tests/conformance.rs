//! moekit's conformance suite, for each way to use redundant slots.

use strategy_snake::{Redundant, Snake};

mod hottest {
    use super::*;

    moekit_testkit::strategy_conformance! {
        plugin: strategy_snake,
        strategy: Snake::default(),
    }
}

mod in_turn {
    use super::*;

    moekit_testkit::strategy_conformance! {
        plugin: strategy_snake,
        strategy: Snake { redundant: Redundant::InTurn },
    }
}
