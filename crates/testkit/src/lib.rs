//! Conformance suites for moekit's plugins.
