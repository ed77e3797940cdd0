//! Has the plugin from a facade that it refers to by `use` alone.

use facade as _;

fn main() {
    programs::report();
}
