//! libFuzzer runs `config`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::config(data));
