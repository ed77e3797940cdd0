//! What other engines would make of a request, for those who export to them.

pub mod vllm;
