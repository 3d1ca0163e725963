//! No parser panics, whatever a user types.

use proptest::prelude::*;

use super::*;

/// Text that looks somewhat like the real thing, so that the parsers get past their first check.
fn plausible() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<String>(),
        "[-+0-9a-zA-Z.:=,/\" \\\\'µ]{0,40}",
        "(type|source|target|tmpfs-mode|published|mode|nofile|max-size|name|alias|ip|encrypted)=[-0-9a-z:/.,=]{0,20}(,(target|readonly|bind-propagation|protocol)=?[0-9a-z/]{0,9}){0,3}",
        "[0-9]{0,25}[.]?[0-9]{0,25}(ns|us|µs|ms|s|m|h|k|mb|gib|p)?",
    ]
}

proptest! {
    #[test]
    fn parsers_never_panic(text in plausible(), now: i64) {
        crate::fuzzing::value(&text, now);
    }

    #[test]
    fn sizes_agree_with_arithmetic(number in 0i64..1_000_000) {
        prop_assert_eq!(size::bytes(&format!("{number}k")), Ok(number * 1024));
        prop_assert_eq!(size::nano_cpus(&number.to_string()), Ok(number * 1_000_000_000));
        prop_assert_eq!(duration::parse(&format!("{number}ms")), Ok(std::time::Duration::from_millis(number.unsigned_abs())));
    }
}
