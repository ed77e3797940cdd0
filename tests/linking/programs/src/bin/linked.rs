//! Links the plugin as its documentation says.

fn main() {
    moekit_placement::link_plugins!(strategy_snake);
    programs::report();
}
