//! Experts stored in f32, f16 or bf16.
