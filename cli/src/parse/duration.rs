//! Spans of time in Go's syntax: `10s`, `1m30s`, `1.5h`, `250ms`.

use std::time::Duration;

use super::ParseError;

const NANOS: [(&str, u128); 8] = [
    ("ns", 1),
    ("us", 1_000),
    ("µs", 1_000),
    ("μs", 1_000),
    ("ms", 1_000_000),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
];

/// Longest span taken: about 292 years, as in Go.
const MAX_NANOS: u128 = i64::MAX as u128;

/// Reads a span; `0` needs no unit, everything else does. Negative spans are refused.
pub(crate) fn parse(text: &str) -> Result<Duration, ParseError> {
    let invalid = |why: &str| ParseError::invalid(format!("{text:?} is not a duration: {why}"));
    if text.starts_with('-') {
        return Err(invalid("it must not be negative"));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid("write it like 10s or 1m30s"));
    }
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let end = rest
            .find(|c: char| !(c.is_ascii_digit() || c == '.'))
            .ok_or_else(|| invalid("the unit is missing, write it like 10s or 1m30s"))?;
        let (number, after) = rest.split_at(end);
        let unit_end = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let nanos = NANOS
            .iter()
            .find(|(name, _)| *name == unit)
            .map(|(_, nanos)| *nanos)
            .ok_or_else(|| invalid("units are ns, us, ms, s, m and h"))?;
        let span = scaled(number, nanos).ok_or_else(|| invalid("write it like 10s or 1m30s"))?;
        total = total.checked_add(span).filter(|total| *total <= MAX_NANOS).ok_or_else(|| invalid("it is too long"))?;
        rest = after;
    }
    let nanos = u64::try_from(total).map_err(|_| invalid("it is too long"))?;
    Ok(Duration::from_nanos(nanos))
}

/// A decimal number times a unit. `None`: not a number, or far too large.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
        return None;
    }
    let whole: u128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
    let mut part: u128 = 0;
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        part += u128::from(digit.checked_sub(b'0')?) * place;
    }
    whole.checked_mul(unit)?.checked_add(part)
}

/// Whole milliseconds for the wire; a span below one counts as one.
pub(crate) fn millis(span: Duration) -> i64 {
    let ms = i64::try_from(span.as_millis()).unwrap_or(i64::MAX);
    if ms == 0 && !span.is_zero() { 1 } else { ms }
}

/// For fields where zero means a default on the wire and -1 means none.
pub(crate) fn millis_or_none(span: Duration) -> i64 {
    if span.is_zero() { -1 } else { millis(span) }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn reads_go_durations() {
        let cases = [
            ("0", 0),
            ("0s", 0),
            ("10s", 10_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("250ms", 250),
            ("2h45m0.5s", 9_900_500),
            (".5s", 500),
            ("1s500ms", 1500),
        ];
        for (text, ms) in cases {
            assert_eq!(parse(text).unwrap(), Duration::from_millis(ms), "{text}");
        }
        assert_eq!(parse("1µs").unwrap(), Duration::from_micros(1));
    }

    #[test]
    fn refuses_with_a_reason() {
        for (text, why) in [
            ("10", "unit is missing"),
            ("-5s", "negative"),
            ("", "like 10s"),
            ("5x", "units are"),
            ("1.2.3s", "like 10s"),
            (".s", "like 10s"),
            ("9999999999h", "too long"),
            ("s", "like 10s"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn wire_values() {
        assert_eq!(millis(Duration::from_nanos(5)), 1);
        assert_eq!(millis_or_none(Duration::ZERO), -1);
        assert_eq!(millis_or_none(Duration::from_secs(2)), 2000);
    }
}
