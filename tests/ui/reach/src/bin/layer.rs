//! Reaches for the layer. Does not compile.

use moekit_fused_moe::FusedMoe;

fn main() {
    let _ = FusedMoe::forward;
}
