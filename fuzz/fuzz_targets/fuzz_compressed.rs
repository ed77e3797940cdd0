//! libFuzzer runs `compressed`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::compressed(data));
