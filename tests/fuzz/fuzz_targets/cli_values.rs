//! See `cli_values` in `skep_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz_targets::cli_values(data));
