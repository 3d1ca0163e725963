//! `--since` and `--tail` of logs.

use super::{ParseError, duration};
use crate::output::time;

/// A moment: a span before now (`10m`), RFC 3339 or a part of it (UTC where it names no zone), or seconds since the
/// epoch. In nanoseconds.
pub(crate) fn parse_ns(text: &str, now_ms: i64) -> Result<i64, ParseError> {
    if let Some(ns) = unix_seconds(text).or_else(|| time::parse_ns(text)) {
        return Ok(ns.max(1));
    }
    match duration::parse(text) {
        Ok(span) => {
            let ms = now_ms.saturating_sub(duration::millis(span));
            Ok(ms.saturating_mul(1_000_000).max(1))
        }
        Err(_) => Err(ParseError::invalid(format!(
            "{text:?} is neither a span of time (42m), a date (2026-01-02T15:04:05Z), nor seconds since 1970"
        ))),
    }
}

fn unix_seconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, "0"));
    if seconds.is_empty() || !seconds.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    seconds.parse::<i64>().ok()?.checked_mul(1_000_000_000)?.checked_add(time::fraction_ns(fraction)?)
}

/// Lines from the end: `None` for `all` and, as in Docker, for negative numbers.
pub(crate) fn tail(text: &str) -> Result<Option<u64>, ParseError> {
    if text == "all" {
        return Ok(None);
    }
    match text.parse::<i64>() {
        Ok(lines) => Ok(u64::try_from(lines).ok()),
        Err(_) => Err(ParseError::invalid(format!("{text:?} is neither a number of lines nor all"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn moments() {
        assert_eq!(parse_ns("10s", 20_000).unwrap(), 10_000_000_000);
        assert_eq!(parse_ns("1970-01-01T00:00:02Z", 0).unwrap(), 2_000_000_000);
        assert_eq!(parse_ns("5.25", 0).unwrap(), 5_250_000_000);
        // Zero would mean "all".
        assert_eq!(parse_ns("1h", 0).unwrap(), 1);
        for wrong in ["", "yesterday", "-5s", "1.", "99999999999999999999"] {
            assert!(parse_ns(wrong, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn tails() {
        assert_eq!(tail("all").unwrap(), None);
        assert_eq!(tail("10").unwrap(), Some(10));
        assert_eq!(tail("0").unwrap(), Some(0));
        assert_eq!(tail("-1").unwrap(), None);
        assert!(tail("x").is_err());
    }
}
