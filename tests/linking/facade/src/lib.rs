//! A crate that brings a plugin along, as the crate `moekit` does.

use strategy_snake as _;

/// Links the plugins by a reference at run time.
pub fn builtins() {
    moekit_placement::link_plugins!(strategy_snake);
}
