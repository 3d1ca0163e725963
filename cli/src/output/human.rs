//! Amounts in the words that Docker uses.

use std::time::Duration;

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// "About a minute", "3 hours": how long, roughly.
pub(crate) fn duration(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        2..MINUTE => format!("{seconds} seconds"),
        _ if seconds < 2 * MINUTE => "About a minute".to_owned(),
        _ if seconds < HOUR => format!("{} minutes", seconds / MINUTE),
        // Docker rounds hours to the nearest and everything longer down.
        _ => match (seconds + HOUR / 2) / HOUR {
            0 | 1 => "About an hour".to_owned(),
            hours @ 2..48 => format!("{hours} hours"),
            hours if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
            hours if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
            hours if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
            _ => format!("{} years", seconds / DAY / 365),
        },
    }
}

/// A span exactly, in Go's words: `1m30s`, `500ms`, `0s`.
pub(crate) fn exact_ms(ms: i64) -> String {
    let ms = u64::try_from(ms).unwrap_or(0);
    let (hours, minutes, seconds) = (ms / 3_600_000, ms / 60_000 % 60, ms % 60_000);
    let decimal = |value: f64| format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned();
    match (hours, minutes) {
        (0, 0) if ms > 0 && ms < 1_000 => format!("{ms}ms"),
        (0, 0) => format!("{}s", decimal(seconds as f64 / 1e3)),
        (0, minutes) => format!("{minutes}m{}s", decimal(seconds as f64 / 1e3)),
        (hours, minutes) => format!("{hours}h{minutes}m{}s", decimal(seconds as f64 / 1e3)),
    }
}

/// "3 minutes ago", from two moments in milliseconds; a moment in the future is "Less than a second ago".
pub(crate) fn ago(now_ms: i64, then_ms: i64) -> String {
    let span = u64::try_from(now_ms.saturating_sub(then_ms)).unwrap_or(0);
    format!("{} ago", duration(Duration::from_millis(span)))
}

/// Decimal bytes, four significant digits: `7.66MB`.
pub(crate) fn size(bytes: i64) -> String {
    scaled(bytes, 1000.0, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// Binary bytes: `7.5GiB`.
pub(crate) fn binary_size(bytes: i64) -> String {
    scaled(bytes, 1024.0, &["B", "KiB", "MiB", "GiB", "TiB", "PiB"])
}

fn scaled(bytes: i64, base: f64, units: &[&str]) -> String {
    let mut value = bytes as f64;
    let mut unit = 0;
    while value.abs() >= base && unit + 1 < units.len() {
        value /= base;
        unit += 1;
    }
    let before = value.abs().log10().floor().clamp(0.0, 3.0);
    let decimals = [3, 2, 1, 0][before as usize];
    let text = format!("{value:.decimals$}");
    let text = if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{}", units[unit])
}

/// Shortens to `length` characters, the last an ellipsis.
pub(crate) fn ellipsis(text: &str, length: usize) -> String {
    if text.chars().count() <= length {
        return text.to_owned();
    }
    let mut short: String = text.chars().take(length.saturating_sub(1)).collect();
    short.push('…');
    short
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_in_dockers_words() {
        let cases = [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (119, "About a minute"),
            (120, "2 minutes"),
            (3599, "59 minutes"),
            (3600, "About an hour"),
            (2 * HOUR, "2 hours"),
            (47 * HOUR, "47 hours"),
            (48 * HOUR, "2 days"),
            (20 * DAY, "2 weeks"),
            (70 * DAY, "2 months"),
            (800 * DAY, "2 years"),
        ];
        for (seconds, text) in cases {
            assert_eq!(duration(Duration::from_secs(seconds)), text);
        }
        assert_eq!(ago(1000, 5000), "Less than a second ago");
    }

    #[test]
    fn exact_spans() {
        for (ms, text) in
            [(0, "0s"), (5_000, "5s"), (250, "250ms"), (1_500, "1.5s"), (90_000, "1m30s"), (3_600_000, "1h0m0s")]
        {
            assert_eq!(exact_ms(ms), text);
        }
    }

    #[test]
    fn sizes_have_four_digits() {
        assert_eq!(size(0), "0B");
        assert_eq!(size(999), "999B");
        assert_eq!(size(1000), "1kB");
        assert_eq!(size(7_660_000), "7.66MB");
        assert_eq!(size(192_345_678), "192.3MB");
        assert_eq!(binary_size(8_053_063_680), "7.5GiB");
    }

    #[test]
    fn long_text_is_cut() {
        assert_eq!(ellipsis("abcdef", 4), "abc…");
        assert_eq!(ellipsis("abcd", 4), "abcd");
    }

    proptest! {
        #[test]
        fn never_panics(a: i64, b: i64, text: String, length in 0usize..50) {
            let _ = (ago(a, b), size(a), binary_size(a), ellipsis(&text, length));
        }
    }
}
