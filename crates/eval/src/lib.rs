//! Load and placement files, workloads and simulation.
