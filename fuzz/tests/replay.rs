//! Every target without a fuzzer: on noise, and on what the checkpoints of this repository hold.

use std::fs;
use std::path::Path;

use moekit_fuzz::{TARGETS, checkpoint, config};

/// Inputs of noise per target.
const INPUTS: u64 = 200;

/// Bytes that are a function of the number alone.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let step = || {
        // SplitMix64.
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed >> 56) as u8
    };
    std::iter::repeat_with(step).take(len).collect()
}

#[test]
fn targets_hold_on_noise() {
    for (name, target) in TARGETS {
        for seed in 0..INPUTS {
            let len = (seed as usize * 7) % 400;
            let input = noise(seed, len);
            let run = std::panic::catch_unwind(|| target(&input));
            assert!(run.is_ok(), "{name} on input {seed}");
        }
    }
}

#[test]
fn targets_hold_on_checkpoints() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/checkpoints");
    let mut count = 0;
    for entry in fs::read_dir(root).expect("the fixtures are part of the repository") {
        let dir = entry.expect("an entry").path();
        let text = fs::read(dir.join("config.json")).expect("every checkpoint has one");
        config(&text);
        checkpoint(&[&[3], &text[..]].concat());
        if let Ok(shard) = fs::read(dir.join("model.safetensors")) {
            checkpoint(&[&[0], &shard[..]].concat());
            let len = shard
                .first_chunk()
                .map_or(0, |len| u64::from_le_bytes(*len));
            checkpoint(&[&[1], &shard[8..8 + len as usize]].concat());
        }
        count += 1;
    }
    assert!(count >= 50, "{count} checkpoints");
}
