//! Benchmarks of moekit.
