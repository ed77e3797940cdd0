//! Mixture-of-Experts expert parallelism in Rust: placement, routing, quantized experts, the fused layer.
