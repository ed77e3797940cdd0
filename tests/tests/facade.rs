//! What the facade brings along.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;

use cargo_metadata::{DependencyKind, MetadataCommand};
use moekit::plugin::Descriptor;
use moekit::{placement, quant};
use moekit_tests::workspace;

fn linked() -> Vec<&'static Descriptor> {
    moekit::builtins();
    let strategies = placement::linked_strategies().unwrap();
    let backends = quant::linked_quant_backends().unwrap();
    strategies.iter().chain(backends.iter()).collect()
}

/// A plugin that is only named in the facade's manifest would not be linked.
#[test]
fn every_plugin_of_the_manifest_is_linked() {
    let manifest = workspace().join("crates/moekit/Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .unwrap();
    let facade = metadata
        .packages
        .iter()
        .find(|p| p.name.as_str() == "moekit")
        .unwrap();
    let is_plugin =
        |name: &str| name.starts_with("moekit-strategy-") || name.starts_with("moekit-quant-");
    let named: BTreeSet<&str> = facade
        .dependencies
        .iter()
        .filter(|d| d.kind == DependencyKind::Normal && is_plugin(&d.name))
        .map(|d| d.name.as_str())
        .collect();
    assert!(named.len() >= 5, "{named:?}");
    let linked: BTreeSet<&str> = linked().iter().map(|plugin| plugin.crate_name).collect();
    assert_eq!(linked, named);
}

#[test]
fn every_builtin_shows_an_example_that_works() {
    for plugin in linked() {
        let example = (plugin.example)();
        let name = match plugin.kind {
            placement::STRATEGY_KIND => placement::strategy_from_value(example).unwrap().name(),
            _ => quant::backend_for(Some(&example)).unwrap().name(),
        };
        assert_eq!(name, plugin.name);
    }
}
