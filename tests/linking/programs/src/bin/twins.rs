//! Links two plugins of one name.

fn main() {
    moekit_placement::link_plugins!(strategy_snake, twin);
    programs::report();
}
