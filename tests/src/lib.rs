//! Tests that cross moekit's crates.
//!
//! `tests/` holds the tests, `golden/` what they compare with, `ui/` the programs that must or must
//! not compile (run by moekit-testkit), `plugins/` and `linking/` Cargo workspaces of their own that
//! tests build as a third party would, `fixtures/` the scripts that make checkpoints.

mod nested;

pub use nested::Nested;

use std::path::Path;

/// The directory of moekit's workspace.
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}
