//! The layer. One program, since each holds the tensor framework.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod activation_quant;
mod activations;
mod common;
mod forward;
mod gradients;
mod packed;
mod ranks;
mod routers;
mod shared;
