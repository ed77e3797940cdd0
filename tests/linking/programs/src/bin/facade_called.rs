//! Has the plugin from a facade, and calls it.

fn main() {
    facade::builtins();
    programs::report();
}
