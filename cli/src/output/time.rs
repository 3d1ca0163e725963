//! Calendar and clock: RFC 3339 to and from numbers. Reads the clock only in [`now_ms`].

use std::time::{SystemTime, UNIX_EPOCH};

const SECONDS_A_DAY: i64 = 86_400;

/// What Go prints for "never"; Docker's clients know it.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// Milliseconds since the epoch, now.
pub(crate) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with the fraction's zeros cut, as Go's RFC3339Nano; zero means "not set".
pub(crate) fn rfc3339_ms(ms: i64) -> String {
    if ms == 0 {
        return ZERO_TIME.to_owned();
    }
    let (seconds, millis) = (ms.div_euclid(1000), ms.rem_euclid(1000));
    let mut text = seconds_text(seconds);
    if millis != 0 {
        let fraction = format!(".{millis:03}");
        text.push_str(fraction.trim_end_matches('0'));
    }
    text.push('Z');
    text
}

/// RFC 3339 in UTC with all nine digits, so that log lines align.
pub(crate) fn rfc3339_ns(ns: i64) -> String {
    let (seconds, nanos) = (ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000));
    format!("{}.{nanos:09}Z", seconds_text(seconds))
}

/// `2026-08-01 10:20:30 +0000 UTC`, as tables show moments.
pub(crate) fn plain_ms(ms: i64) -> String {
    let text = seconds_text(ms.div_euclid(1000));
    format!("{} +0000 UTC", text.replace('T', " "))
}

fn seconds_text(seconds: i64) -> String {
    let (days, of_day) = (seconds.div_euclid(SECONDS_A_DAY), seconds.rem_euclid(SECONDS_A_DAY));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}")
}

/// Days since 1970-01-01 to year, month, day (Howard Hinnant, "chrono-compatible low-level date algorithms").
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let of_era = shifted.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    (year, month, day)
}

/// The reverse of [`civil`].
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year;
    era * 146_097 + of_era - 719_468
}

/// Reads a date, with or without a time of day, fraction and zone (none: UTC), to nanoseconds since the epoch. `None` if
/// it is not one, or out of range.
pub(crate) fn parse_ns(text: &str) -> Option<i64> {
    let (date, time) = match text.split_once(['T', 't', ' ']) {
        Some((date, time)) => (date, Some(time)),
        None => (text, None),
    };
    let [year, month, day] = numbers::<3>(date, '-', &[4, 2, 2])?;
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let days = days_from_civil(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let (of_day, nanos) = match time {
        Some(time) => time_of_day(time)?,
        None => (0, 0),
    };
    days.checked_mul(SECONDS_A_DAY)?.checked_add(of_day)?.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// `10:20[:30[.5]][Z|+02:00]` to seconds in UTC and nanoseconds.
fn time_of_day(text: &str) -> Option<(i64, i64)> {
    let (clock, offset) = if let Some(clock) = text.strip_suffix(['Z', 'z']) {
        (clock, 0)
    } else if let Some(at) = text.rfind(['+', '-']) {
        let [hours, minutes] = numbers::<2>(&text[at + 1..], ':', &[2, 2])?;
        if hours > 23 || minutes > 59 {
            return None;
        }
        let sign = if text[at..].starts_with('-') { -1 } else { 1 };
        (&text[..at], sign * (hours * 3600 + minutes * 60))
    } else {
        (text, 0)
    };
    let (clock, fraction) = match clock.split_once('.') {
        Some((clock, fraction)) => (clock, fraction),
        None => (clock, "0"),
    };
    let [hour, minute, second] = match numbers::<3>(clock, ':', &[2, 2, 2]) {
        Some(numbers) => numbers,
        None => {
            let [hour, minute] = numbers::<2>(clock, ':', &[2, 2])?;
            [hour, minute, 0]
        }
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    Some((hour * 3600 + minute * 60 + second - offset, fraction_ns(fraction)?))
}

/// Digits after the point as nanoseconds; more than nine are cut.
pub(crate) fn fraction_ns(digits: &str) -> Option<i64> {
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    format!("{:0<9}", &digits[..digits.len().min(9)]).parse().ok()
}

/// Exactly `N` numbers with the given counts of digits.
fn numbers<const N: usize>(text: &str, separator: char, digits: &[usize; N]) -> Option<[i64; N]> {
    let mut out = [0; N];
    let mut parts = text.split(separator);
    for (slot, width) in out.iter_mut().zip(digits) {
        let part = parts.next()?;
        if part.len() != *width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *slot = part.parse().ok()?;
    }
    parts.next().is_none().then_some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_moments() {
        assert_eq!(rfc3339_ms(0), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339_ms(1_000), "1970-01-01T00:00:01Z");
        assert_eq!(rfc3339_ms(1_785_578_430_120), "2026-08-01T10:00:30.12Z");
        assert_eq!(rfc3339_ns(1_500_000_000_000_000_001), "2017-07-14T02:40:00.000000001Z");
        assert_eq!(plain_ms(951_782_400_000), "2000-02-29 00:00:00 +0000 UTC");
    }

    #[test]
    fn reads_what_docker_documents() {
        assert_eq!(parse_ns("1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(parse_ns("1970-01-02"), Some(86_400_000_000_000));
        assert_eq!(parse_ns("1970-01-01T02:00"), Some(7_200_000_000_000));
        assert_eq!(parse_ns("1970-01-01T02:00:00.5+02:00"), Some(500_000_000));
        assert_eq!(parse_ns("1969-12-31T23:30:00-00:30"), Some(0));
        for wrong in ["", "2026", "2026-13-01", "2026-02-30", "2026-02-03T25:00", "2026-02-03T", "2026-2-3", "x-y-z"] {
            assert_eq!(parse_ns(wrong), None, "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn round_trip(ns in 1i64..4_000_000_000_000_000_000) {
            prop_assert_eq!(parse_ns(&rfc3339_ns(ns)), Some(ns));
        }

        #[test]
        fn never_panics(text: String, ms: i64, ns: i64) {
            let _ = (parse_ns(&text), rfc3339_ms(ms), rfc3339_ns(ns), plain_ms(ms));
        }
    }
}
