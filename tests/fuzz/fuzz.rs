//! The fuzzer's program: gives its bytes to the target that `SKEP_FUZZ_TARGET` names. One for all of them, as each would
//! have all of skep in it, built and linked again.
#![no_main]

use std::sync::LazyLock;

use skep_fuzz_targets::TARGETS;

static RUN: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("SKEP_FUZZ_TARGET").unwrap_or_default();
    let Some(target) = TARGETS.iter().find(|target| target.name == name) else {
        let names: Vec<_> = TARGETS.iter().map(|target| target.name).collect();
        eprintln!("SKEP_FUZZ_TARGET={name:?} names no target; there are: {}", names.join(" "));
        std::process::exit(2);
    };
    target.run
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| RUN(data));
