//! Amounts: bytes (`512m`, `1.5GiB`; all units binary, as in Docker) and CPUs (`1.5`).

use super::ParseError;

/// Reads bytes: a number and nothing, `b`, `k`, `m`, `g`, `t`, `p`, each also as `kb` or `kib`.
pub(crate) fn bytes(text: &str) -> Result<i64, ParseError> {
    let invalid = |why: &str| ParseError::invalid(format!("{text:?} is not a size: {why}"));
    let lower = text.trim().to_lowercase();
    if lower.starts_with('-') {
        return Err(invalid("it must not be negative"));
    }
    let end = lower.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let shift = match unit.trim() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        "p" | "pb" | "pib" => 50,
        _ => return Err(invalid("units are b, k, m, g, t and p")),
    };
    if !number.contains('.') {
        return number
            .parse::<i64>()
            .map_err(|_| invalid("write it like 512m or 1.5g"))?
            .checked_mul(1 << shift)
            .ok_or_else(|| invalid("it is too large"));
    }
    let value: f64 = number.parse().map_err(|_| invalid("write it like 512m or 1.5g"))?;
    let value = value * (1i64 << shift) as f64;
    if value >= i64::MAX as f64 {
        return Err(invalid("it is too large"));
    }
    Ok(value as i64)
}

/// Reads CPUs into billionths: at most nine digits after the point.
pub(crate) fn nano_cpus(text: &str) -> Result<i64, ParseError> {
    let invalid = |why: &str| ParseError::invalid(format!("{text:?} is not a number of CPUs: {why}"));
    if text.starts_with('-') {
        return Err(invalid("it must not be negative"));
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(whole) || !digits(fraction) || (whole.is_empty() && fraction.is_empty()) {
        return Err(invalid("write it like 2 or 0.5"));
    }
    if fraction.len() > 9 {
        return Err(invalid("it has more than nine digits after the point"));
    }
    let too_large = || invalid("it is too large");
    let whole: i64 = if whole.is_empty() { 0 } else { whole.parse().map_err(|_| too_large())? };
    let fraction: i64 = format!("{fraction:0<9}").parse().map_err(|_| too_large())?;
    whole.checked_mul(1_000_000_000).and_then(|nanos| nanos.checked_add(fraction)).ok_or_else(too_large)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes() {
        let cases = [
            ("0", 0),
            ("100", 100),
            ("100b", 100),
            ("4k", 4096),
            ("512m", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("2g", 2 << 30),
            ("1 GB", 1 << 30),
            ("1T", 1 << 40),
        ];
        for (text, value) in cases {
            assert_eq!(bytes(text).unwrap(), value, "{text}");
        }
        for (text, why) in [
            ("", "like 512m"),
            ("-1", "negative"),
            ("1x", "units"),
            ("9999999p", "too large"),
            ("1.2.3", "like 512m"),
            ("99999999.5p", "too large"),
        ] {
            let error = bytes(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn cpus() {
        assert_eq!(nano_cpus("1.5").unwrap(), 1_500_000_000);
        assert_eq!(nano_cpus(".25").unwrap(), 250_000_000);
        assert_eq!(nano_cpus("4").unwrap(), 4_000_000_000);
        assert_eq!(nano_cpus("0.000000001").unwrap(), 1);
        for (text, why) in [
            ("", "like 2"),
            ("-1", "negative"),
            ("1e3", "like 2"),
            ("0.0000000001", "nine digits"),
            ("99999999999", "too large"),
            ("1.+5", "like 2"),
        ] {
            let error = nano_cpus(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
