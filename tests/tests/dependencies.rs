//! Who may know whom: the dependency rules of the workspace.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use cargo_metadata::{DependencyKind, MetadataCommand, Package};
use moekit_tests::workspace;

/// What each crate may depend on, of ours. Names are without `moekit-`; a trailing `*` is any.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("plugin", &[]),
    ("routing", &[]),
    ("placement", &["plugin", "routing"]),
    ("quant", &["plugin", "routing"]),
    ("checkpoint", &["quant"]),
    ("kernels", &["quant"]),
    ("eval", &["placement", "routing"]),
    ("fused-moe", &["kernels", "quant", "routing"]),
    ("parallel", &["fused-moe", "routing"]),
    (
        "live",
        &["fused-moe", "parallel", "placement", "quant", "routing"],
    ),
    ("testkit", &["placement", "quant", "routing"]),
    ("strategy-*", &["placement", "routing"]),
    ("quant-*", &["quant", "routing"]),
    (
        "moekit",
        &[
            "checkpoint",
            "eval",
            "fused-moe",
            "kernels",
            "live",
            "parallel",
            "placement",
            "plugin",
            "quant",
            "quant-*",
            "routing",
            "strategy-*",
        ],
    ),
    ("cli", &["moekit"]),
    ("tests", &["*"]),
    ("benches", &["*"]),
];

/// Who may see the tensor framework.
const MAY_USE_BURN: &[&str] = &[
    "fused-moe",
    "parallel",
    "live",
    "moekit",
    "cli",
    "tests",
    "benches",
];

/// Where `unsafe` may be: the kernels, and the one line that maps a file.
const MAY_BE_UNSAFE: &[(&str, usize)] = &[("kernels", usize::MAX), ("checkpoint", 1)];

fn members() -> Vec<Package> {
    let manifest = workspace().join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .unwrap();
    metadata.packages
}

fn short(name: &str) -> &str {
    name.strip_prefix("moekit-").unwrap_or(name)
}

fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

fn is_ours(name: &str) -> bool {
    name == "moekit" || name.starts_with("moekit-")
}

/// The rule of a crate: the one of its own name, or of the pattern that it fits.
fn may_know(name: &str) -> Option<&'static [&'static str]> {
    let exact = MAY_KNOW.iter().find(|(pattern, _)| *pattern == name);
    let rule = exact.or_else(|| MAY_KNOW.iter().find(|(pattern, _)| matches(pattern, name)));
    rule.map(|(_, known)| *known)
}

/// Every dependency on a crate of ours that a rule forbids.
fn violations(package: &str, dependencies: &[(&str, DependencyKind)]) -> Vec<String> {
    let name = short(package);
    let Some(known) = may_know(name) else {
        return vec![format!("there is no rule for the crate {package}")];
    };
    let is_plugin = name.starts_with("strategy-") || name.starts_with("quant-");
    let allowed = |dependency: &str, kind: DependencyKind| {
        let in_tests = kind == DependencyKind::Development;
        // Plugins are to be tested with what a third party has; others may test as they like.
        known.iter().any(|pattern| matches(pattern, dependency))
            || in_tests && (dependency == "testkit" || !is_plugin)
    };
    dependencies
        .iter()
        .filter(|(dependency, kind)| is_ours(dependency) && !allowed(short(dependency), *kind))
        .map(|(dependency, _)| format!("{package} may not depend on {dependency}"))
        .collect()
}

#[test]
fn crates_know_only_whom_they_may() {
    let found: Vec<_> = members()
        .iter()
        .flat_map(|package| {
            let dependencies: Vec<_> = package
                .dependencies
                .iter()
                .map(|d| (d.name.as_str(), d.kind))
                .collect();
            violations(&package.name, &dependencies)
        })
        .collect();
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn the_rules_can_be_broken() {
    use DependencyKind::{Development, Normal};
    for (package, dependency, kind) in [
        ("moekit-strategy-linear", "moekit-quant", Normal),
        (
            "moekit-strategy-linear",
            "moekit-strategy-eplb",
            Development,
        ),
        ("moekit-quant-fp8", "moekit-placement", Normal),
        ("moekit-quant-fp8", "moekit-fused-moe", Development),
        ("moekit-routing", "moekit-plugin", Normal),
        ("moekit-kernels", "moekit-checkpoint", Normal),
        ("moekit-placement", "moekit-testkit", Normal),
        ("moekit-cli", "moekit-placement", Normal),
        ("moekit-newcomer", "moekit-routing", Normal),
    ] {
        assert_eq!(
            violations(package, &[(dependency, kind)]).len(),
            1,
            "{package} {dependency}"
        );
    }
    let third_parties = [
        ("moekit-quant", Normal),
        ("moekit-testkit", Development),
        ("serde", Normal),
    ];
    assert_eq!(violations("moekit-quant-fp8", &third_parties), [""; 0]);
}

#[test]
fn burn_stays_in_the_layer() {
    let users: BTreeSet<String> = members()
        .iter()
        .filter(|p| p.dependencies.iter().any(|d| d.name.starts_with("burn")))
        .map(|p| short(&p.name).to_owned())
        .collect();
    assert!(users.contains("fused-moe"), "{users:?}");
    let strangers: Vec<_> = users
        .iter()
        .filter(|name| !MAY_USE_BURN.contains(&name.as_str()))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

#[test]
fn unsafe_code_stays_in_the_kernels() {
    for package in members() {
        let dir = package.manifest_path.parent().unwrap();
        let manifest: toml::Table = fs::read_to_string(&package.manifest_path)
            .unwrap()
            .parse()
            .unwrap();
        let lints = manifest
            .get("lints")
            .and_then(|lints| lints.get("workspace"));
        assert_eq!(
            lints,
            Some(&toml::Value::Boolean(true)),
            "{} keeps its own lints",
            package.name
        );

        let name = short(&package.name);
        let limit = MAY_BE_UNSAFE
            .iter()
            .find(|(n, _)| *n == name)
            .map_or(0, |(_, limit)| *limit);
        // What tests build as a third party would is no part of the package around it.
        let own = ["src", "tests", "benches", "examples"].map(|part| dir.join(part));
        let uses: usize = own.iter().map(|part| permissions(part.as_std_path())).sum();
        assert!(
            uses <= limit,
            "{name} lets unsafe code in at {uses} places, may at {limit}"
        );
    }
}

/// Attributes below a directory that let unsafe code in.
fn permissions(path: &Path) -> usize {
    if path.is_dir() {
        let entries = fs::read_dir(path).unwrap();
        return entries
            .map(|entry| permissions(&entry.unwrap().path()))
            .sum();
    }
    if path.extension().is_none_or(|extension| extension != "rs") {
        return 0;
    }
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(str::trim_start);
    lines
        .filter(|line| line.starts_with('#') && line.contains("unsafe_code"))
        .count()
}
