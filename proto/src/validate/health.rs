//! Health checks of a container.

use super::{Invalid, not_negative};
use crate::v1::HealthCheck;

/// Failures in a row that may be asked for at most; more is a mistake in the unit.
const MAX_RETRIES: u32 = 10_000;

pub(super) fn health_check(check: &HealthCheck) -> Result<(), Invalid> {
    test(&check.test)?;
    let spans = [
        ("interval_ms", check.interval_ms),
        ("timeout_ms", check.timeout_ms),
        ("start_period_ms", check.start_period_ms),
        ("start_interval_ms", check.start_interval_ms),
    ];
    for (field, ms) in spans {
        not_negative(field, ms)?;
    }
    if check.retries > MAX_RETRIES {
        return Err(Invalid::new("retries", format!("must be at most {MAX_RETRIES}, not {}", check.retries)));
    }
    let has_none = check.test.first().is_some_and(|word| word == "NONE");
    if has_none && (spans.iter().any(|(_, ms)| *ms != 0) || check.retries != 0) {
        return Err(Invalid::new(
            "test",
            "NONE (no health check) goes with no interval, timeout, retries or start period",
        ));
    }
    Ok(())
}

/// The forms of Docker and OCI images.
fn test(test: &[String]) -> Result<(), Invalid> {
    if test.iter().any(|word| word.contains('\0')) {
        return Err(Invalid::new("test", "must not contain NUL"));
    }
    let Some((form, rest)) = test.split_first() else {
        return Ok(());
    };
    let message = match (form.as_str(), rest) {
        ("NONE", []) => return Ok(()),
        ("NONE", _) => "NONE (no health check) takes no command",
        ("CMD", [program, ..]) if !program.is_empty() => return Ok(()),
        ("CMD", _) => "CMD needs a program",
        ("CMD-SHELL", [line]) if !line.is_empty() => return Ok(()),
        ("CMD-SHELL", _) => "CMD-SHELL needs exactly one command line",
        _ => "must begin with NONE, CMD or CMD-SHELL",
    };
    Err(Invalid::new("test", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(test: &[&str]) -> HealthCheck {
        HealthCheck { test: test.iter().map(|word| (*word).to_owned()).collect(), ..HealthCheck::default() }
    }

    #[test]
    fn forms_of_the_test() {
        for good in [&[][..], &["NONE"], &["CMD", "true"], &["CMD", "a", ""], &["CMD-SHELL", "a || b"]] {
            assert_eq!(health_check(&check(good)), Ok(()), "{good:?}");
        }
        for bad in [
            &["true"][..],
            &["NONE", "x"],
            &["CMD"],
            &["CMD", ""],
            &["CMD-SHELL"],
            &["CMD-SHELL", "a", "b"],
            &["CMD", "\0"],
        ] {
            assert_eq!(health_check(&check(bad)).map_err(|invalid| invalid.field), Err("test".to_owned()), "{bad:?}");
        }
    }

    #[test]
    fn numbers() {
        let field = |check: HealthCheck| health_check(&check).map_err(|invalid| invalid.field);
        assert_eq!(field(HealthCheck { interval_ms: 1, retries: 3, ..HealthCheck::default() }), Ok(()));
        assert_eq!(field(HealthCheck { timeout_ms: -1, ..HealthCheck::default() }), Err("timeout_ms".to_owned()));
        assert_eq!(field(HealthCheck { retries: u32::MAX, ..HealthCheck::default() }), Err("retries".to_owned()));
        assert_eq!(field(HealthCheck { interval_ms: 5, ..check(&["NONE"]) }), Err("test".to_owned()));
    }
}
