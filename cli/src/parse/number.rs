//! Whole numbers, with messages that say what is wanted.

use super::ParseError;

/// From 0 up.
pub(crate) fn count<T: TryFrom<u64>>(text: &str) -> Result<T, ParseError> {
    text.parse::<u64>()
        .ok()
        .and_then(|number| T::try_from(number).ok())
        .ok_or_else(|| ParseError::invalid(refusal(text)))
}

fn refusal(text: &str) -> String {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    match (is_number, text.starts_with('-')) {
        (true, true) => "it must not be negative".to_owned(),
        (true, false) => "it is too large".to_owned(),
        (false, _) => format!("{text:?} is not a whole number"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers() {
        assert_eq!(count::<u64>("10").unwrap(), 10);
        for (text, why) in [
            ("-1", "negative"),
            ("99999999999999999999", "too large"),
            ("x", "whole number"),
            ("", "whole number"),
            ("1.5", "whole number"),
        ] {
            let error = count::<u64>(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text}: {error}");
        }
        assert!(count::<u32>("4294967296").is_err());
    }
}
