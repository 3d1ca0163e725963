//! See `netd_requests` in `skep_fuzz_targets`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| skep_fuzz_targets::netd_requests(data));
