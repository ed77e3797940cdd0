//! libFuzzer runs `modelopt`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::modelopt(data));
