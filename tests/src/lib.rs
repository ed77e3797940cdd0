//! Tests that cross moekit's crates.
