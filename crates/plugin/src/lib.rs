//! What every plugin says of itself, and the registry that finds it by name.
//!
//! A plugin crate holds one `pub static DESCRIPTOR`, which the registration macros of the trait
//! crates (`register_strategy!`, `register_quant_backend!`) write. The linker drops a crate that
//! nothing refers to, so a binary that uses a plugin names its descriptor at run time with
//! [`link_plugins!`].

mod description;
mod descriptor;
mod registry;

pub use descriptor::Descriptor;
pub use registry::{PluginError, Registry, link};

#[doc(hidden)]
pub mod __private {
    pub use inventory;
    pub use schemars;
    pub use serde_json;

    /// What `inventory` collects: a reference, so that one descriptor has one address.
    pub struct Registration(pub &'static crate::Descriptor);

    inventory::collect!(Registration);

    /// The JSON schema of a configuration type.
    ///
    /// A schema of a derived type always serializes; if a hand-written one does not, the schema is
    /// `null` rather than a panic in whoever lists the plugins.
    pub fn schema<T: schemars::JsonSchema>() -> serde_json::Value {
        let mut schema = serde_json::to_value(schemars::schema_for!(T)).unwrap_or_default();
        crate::description::without_code(&mut schema);
        schema
    }
}

/// Links plugin crates into this program, by referring to their `DESCRIPTOR` at run time.
///
/// Call it once, before the first look-up, with the paths of the crates (or modules) that hold
/// the descriptors.
///
/// ```
/// mod my_plugin {
///     pub static DESCRIPTOR: moekit_plugin::Descriptor = moekit_plugin::Descriptor {
///         kind: "placement strategy",
///         name: "mine",
///         summary: "An example",
///         crate_name: "my-plugin",
///         crate_version: "0.1.0",
///         schema: || Default::default(),
///         example: || Default::default(),
///     };
/// }
///
/// moekit_plugin::link_plugins!(my_plugin);
/// let registry = moekit_plugin::Registry::linked("placement strategy")?;
/// assert_eq!(registry.get("mine")?.crate_name, "my-plugin");
/// # Ok::<(), moekit_plugin::PluginError>(())
/// ```
#[macro_export]
macro_rules! link_plugins {
    ($($plugin:path),+ $(,)?) => {{
        $({
            use $plugin as plugin;
            $crate::link(&plugin::DESCRIPTOR);
        })+
    }};
}
