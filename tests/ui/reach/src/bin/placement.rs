//! Reaches for the strategies. Does not compile.

use moekit_placement::strategy_from_value;

fn main() {
    let _ = strategy_from_value;
}
