//! Descriptors and the registry of moekit's plugins.
