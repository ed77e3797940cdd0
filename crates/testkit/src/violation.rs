use thiserror::Error;

/// A property that a plugin does not hold, and what shows it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("`{plugin}` breaks `{property}`: {evidence}")]
#[non_exhaustive]
pub struct Violation {
    /// Name of the plugin.
    pub plugin: String,
    /// The property: the name of the suite's method.
    pub property: &'static str,
    /// What was asked, what was answered, what would be right.
    pub evidence: String,
}
