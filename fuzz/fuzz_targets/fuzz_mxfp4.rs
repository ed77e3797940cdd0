//! libFuzzer runs `mxfp4`.

#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| moekit_fuzz::mxfp4(data));
