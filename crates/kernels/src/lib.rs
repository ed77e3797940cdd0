//! Grouped expert kernels for CPUs.
