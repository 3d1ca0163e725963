//! See `raft_keys` in `skep_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz_targets::raft_keys(data));
