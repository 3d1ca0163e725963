//! Calendar time without a library: nanoseconds since 1970 as RFC 3339.
//!
//! Used by the monitor for log lines. Never reads a clock itself.

/// Length of [`rfc3339`]'s result: `2026-01-02T03:04:05.123456789Z`.
pub const RFC3339_LEN: usize = 30;

/// Formats nanoseconds since the epoch as RFC 3339 in UTC, always with nine digits of fraction, so that lines sort.
///
/// Years beyond 9999 do not occur: the argument ends in 2554.
pub fn rfc3339(unix_ns: u64) -> [u8; RFC3339_LEN] {
    let (seconds, nanos) = (unix_ns / 1_000_000_000, unix_ns % 1_000_000_000);
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = civil_from_days(days);
    let mut out = *b"0000-00-00T00:00:00.000000000Z";
    put_decimal(&mut out[0..4], year);
    put_decimal(&mut out[5..7], month);
    put_decimal(&mut out[8..10], day);
    put_decimal(&mut out[11..13], second_of_day / 3_600);
    put_decimal(&mut out[14..16], second_of_day / 60 % 60);
    put_decimal(&mut out[17..19], second_of_day % 60);
    put_decimal(&mut out[20..29], nanos);
    out
}

fn put_decimal(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
}

/// Days since 1970-01-01 to (year, month, day) of the proleptic Gregorian calendar.
/// Method: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms".
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(unix_ns: u64) -> String {
        String::from_utf8_lossy(&rfc3339(unix_ns)).into_owned()
    }

    #[test]
    fn known_instants() {
        assert_eq!(text(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(text(951_782_400_000_000_001), "2000-02-29T00:00:00.000000001Z");
        assert_eq!(text(1_709_251_199_999_999_999), "2024-02-29T23:59:59.999999999Z");
        assert_eq!(text(1_735_689_600_000_000_000), "2025-01-01T00:00:00.000000000Z");
        assert_eq!(text(4_102_444_800_000_000_000), "2100-01-01T00:00:00.000000000Z");
    }
}
