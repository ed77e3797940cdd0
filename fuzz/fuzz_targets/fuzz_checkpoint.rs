//! libFuzzer runs `checkpoint`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::checkpoint(data));
