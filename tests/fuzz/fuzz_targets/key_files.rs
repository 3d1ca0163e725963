//! See `key_files` in `skep_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz_targets::key_files(data));
