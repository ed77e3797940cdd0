//! A static library for a program that is not written in Rust.

use strategy_snake as _;

/// Prints the report; the C program's whole work.
#[unsafe(no_mangle)]
pub extern "C" fn embedded_report() {
    #[cfg(feature = "link")]
    moekit_placement::link_plugins!(strategy_snake);
    programs::report();
}
