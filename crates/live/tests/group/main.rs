//! A group that serves while experts move and members come and go. One program, since each holds the
//! tensor framework.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../common/mod.rs"]
mod common;
mod elastic;
mod faults;
mod formats;
mod moving;
mod progress;
