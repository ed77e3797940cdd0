use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use thiserror::Error;

use crate::__private::{Registration, inventory};
use crate::Descriptor;

/// Names closer than this (Jaro-Winkler, 1 is equal) are worth suggesting.
const SIMILAR: f64 = 0.75;

static LINKED: Mutex<Vec<&'static Descriptor>> = Mutex::new(Vec::new());

/// Why a plugin cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum PluginError {
    /// No plugin of that name is linked.
    #[error(
        "unknown {kind} `{name}`{}; linked are: {}. \
         A plugin of another crate must be linked by the program: `moekit::link_plugins!(the_crate);`",
        nearest.as_ref().map(|n| format!(", did you mean `{n}`?")).unwrap_or_default(),
        if linked.is_empty() { "none".to_owned() } else { linked.join(", ") }
    )]
    Unknown {
        /// Kind of the plugin.
        kind: &'static str,
        /// The name asked for.
        name: String,
        /// The linked name that is most like it.
        nearest: Option<String>,
        /// All linked names.
        linked: Vec<String>,
    },
    /// Two crates claim one name.
    #[error(
        "two {kind} plugins are named `{name}`: one from {first}, one from {second}; \
         rename one of them or link only one"
    )]
    Duplicate {
        /// Kind of the plugins.
        kind: &'static str,
        /// The name both claim.
        name: String,
        /// Crate and version of one.
        first: String,
        /// Crate and version of the other.
        second: String,
    },
}

/// Makes a plugin known by a reference at run time; see [`link_plugins!`](crate::link_plugins).
pub fn link(descriptor: &'static Descriptor) {
    let mut linked = LINKED.lock().unwrap_or_else(PoisonError::into_inner);
    if !linked.iter().any(|d| std::ptr::eq(*d, descriptor)) {
        linked.push(descriptor);
    }
}

/// The linked plugins of one kind, by name.
#[derive(Debug)]
pub struct Registry {
    kind: &'static str,
    plugins: BTreeMap<&'static str, &'static Descriptor>,
}

impl Registry {
    /// All plugins of a kind that this program links.
    ///
    /// # Errors
    ///
    /// If two different plugins have one name.
    pub fn linked(kind: &'static str) -> Result<Self, PluginError> {
        let named = LINKED
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let submitted = inventory::iter::<Registration>.into_iter().map(|r| r.0);
        Self::from_descriptors(kind, submitted.chain(named))
    }

    fn from_descriptors(
        kind: &'static str,
        descriptors: impl Iterator<Item = &'static Descriptor>,
    ) -> Result<Self, PluginError> {
        let mut plugins = BTreeMap::<_, &'static Descriptor>::new();
        for descriptor in descriptors.filter(|d| d.kind == kind) {
            match plugins.insert(descriptor.name, descriptor) {
                Some(other) if !std::ptr::eq(other, descriptor) => {
                    return Err(duplicate(other, descriptor));
                }
                _ => {}
            }
        }
        Ok(Self { kind, plugins })
    }

    /// The plugin of a name.
    ///
    /// # Errors
    ///
    /// If none is linked; the message lists what is.
    pub fn get(&self, name: &str) -> Result<&'static Descriptor, PluginError> {
        self.plugins
            .get(name)
            .copied()
            .ok_or_else(|| PluginError::Unknown {
                kind: self.kind,
                name: name.to_owned(),
                nearest: self.nearest(name),
                linked: self.plugins.keys().map(|&n| n.to_owned()).collect(),
            })
    }

    /// The plugins in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &'static Descriptor> {
        self.plugins.values().copied()
    }

    fn nearest(&self, name: &str) -> Option<String> {
        let similarity = |n: &str| strsim::jaro_winkler(n, name);
        self.plugins
            .keys()
            .filter(|n| similarity(n) >= SIMILAR)
            .max_by(|a, b| similarity(a).total_cmp(&similarity(b)))
            .map(|&n| n.to_owned())
    }
}

fn duplicate(a: &'static Descriptor, b: &'static Descriptor) -> PluginError {
    let origin = |d: &Descriptor| format!("{} {}", d.crate_name, d.crate_version);
    let (mut first, mut second) = (origin(a), origin(b));
    // The order in which a linker collects plugins is not ours to choose; the message's is.
    if first > second {
        std::mem::swap(&mut first, &mut second);
    }
    PluginError::Duplicate {
        kind: a.kind,
        name: a.name.to_owned(),
        first,
        second,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn descriptor(kind: &'static str, name: &'static str, by: &'static str) -> Descriptor {
        Descriptor {
            kind,
            name,
            summary: "",
            crate_name: by,
            crate_version: "1.0.0",
            schema: serde_json::Value::default,
            example: serde_json::Value::default,
        }
    }

    static ONE: Descriptor = descriptor("kind", "balanced", "one");
    static OTHER: Descriptor = descriptor("kind", "balanced", "another");
    static FOREIGN: Descriptor = descriptor("other kind", "balanced", "third");

    #[test]
    fn one_descriptor_may_arrive_twice() {
        let registry =
            Registry::from_descriptors("kind", [&ONE, &FOREIGN, &ONE].into_iter()).unwrap();
        assert_eq!(registry.iter().count(), 1);
        assert!(std::ptr::eq(registry.get("balanced").unwrap(), &ONE));
    }

    #[test]
    fn two_crates_of_one_name_are_both_named() {
        for pair in [[&ONE, &OTHER], [&OTHER, &ONE]] {
            let error = Registry::from_descriptors("kind", pair.into_iter()).unwrap_err();
            assert_eq!(
                error.to_string(),
                "two kind plugins are named `balanced`: one from another 1.0.0, one from one 1.0.0; \
                 rename one of them or link only one"
            );
        }
    }

    #[test]
    fn unknown_names_get_help() {
        let registry = Registry::from_descriptors("kind", [&ONE].into_iter()).unwrap();
        let error = registry.get("balancd").unwrap_err().to_string();
        assert!(error.contains("did you mean `balanced`?"), "{error}");
        assert!(error.contains("link_plugins!"), "{error}");
        let error = registry.get("zzz").unwrap_err().to_string();
        assert!(!error.contains("did you mean"), "{error}");
    }
}
