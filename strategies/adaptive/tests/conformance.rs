//! The conformance suite.

mod by_default {
    use moekit_strategy_adaptive::Adaptive;

    moekit_testkit::strategy_conformance! {
        plugin: moekit_strategy_adaptive,
        strategy: Adaptive::default(),
    }
}

mod with_layer_budgets {
    use moekit_strategy_adaptive::Adaptive;

    fn adaptive() -> Adaptive {
        let mut adaptive = Adaptive::default();
        adaptive.layer_budgets = true;
        adaptive
    }

    moekit_testkit::strategy_conformance! {
        plugin: moekit_strategy_adaptive,
        strategy: adaptive(),
    }
}
