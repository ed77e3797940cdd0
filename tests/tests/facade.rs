//! What the facade brings along.

use moekit::{placement, quant};

#[test]
fn builtins_are_found_by_name() {
    moekit::builtins();
    let strategies = placement::linked_strategies().unwrap();
    let names: Vec<_> = strategies.iter().map(|plugin| plugin.name).collect();
    for name in ["eplb", "fixed", "linear", "round_robin"] {
        assert!(names.contains(&name), "{names:?}");
    }
    let backends = quant::linked_quant_backends().unwrap();
    assert_eq!(
        backends.get("unquantized").unwrap().crate_name,
        "moekit-quant-unquantized"
    );
}

#[test]
fn every_builtin_shows_an_example_that_works() {
    moekit::builtins();
    for plugin in placement::linked_strategies().unwrap().iter() {
        let strategy = placement::strategy_from_value((plugin.example)()).unwrap();
        assert_eq!(strategy.name(), plugin.name);
    }
    for plugin in quant::linked_quant_backends().unwrap().iter() {
        let backend = quant::backend_for(Some(&(plugin.example)())).unwrap();
        assert_eq!(backend.name(), plugin.name);
    }
}
