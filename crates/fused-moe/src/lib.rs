//! The fused Mixture-of-Experts layer on Burn.
