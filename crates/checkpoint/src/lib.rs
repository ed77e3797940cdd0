//! Hugging Face Mixture-of-Experts checkpoints: model families and memory-mapped safetensors.
