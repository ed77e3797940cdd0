//! Names the plugin in Cargo.toml and nowhere else.

fn main() {
    programs::report();
}
