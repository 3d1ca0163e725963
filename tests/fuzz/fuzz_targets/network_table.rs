//! See `network_table` in `skep_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz_targets::network_table(data));
