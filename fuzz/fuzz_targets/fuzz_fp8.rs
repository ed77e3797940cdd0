//! libFuzzer runs `fp8`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::fp8(data));
