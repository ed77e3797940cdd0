//! Quantization backends and the canonical form of packed experts.
