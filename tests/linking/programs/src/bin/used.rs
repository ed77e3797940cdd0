//! Refers to the plugin by `use` alone, in the program itself.

use strategy_snake as _;

fn main() {
    programs::report();
}
