use serde_json::Value;

/// What a plugin says of itself. One plugin has one descriptor, a `static`.
#[derive(Debug)]
pub struct Descriptor {
    /// What the plugin is: `placement strategy`, `quantization backend`. Names are unique within
    /// a kind.
    pub kind: &'static str,
    /// The name that configurations use: the plugin's typetag name.
    pub name: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// The crate that holds the plugin.
    pub crate_name: &'static str,
    /// Its version.
    pub crate_version: &'static str,
    /// JSON schema of the configuration.
    pub schema: fn() -> Value,
    /// An example of the configuration, tag included.
    pub example: fn() -> Value,
}
