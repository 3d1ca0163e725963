//! The order of names that a person expects: `web.2` before `web.10`.

use std::cmp::Ordering;

/// Compares runs of digits by their value, everything else by characters.
pub(crate) fn compare(left: &str, right: &str) -> Ordering {
    let (mut left_rest, mut right_rest) = (left, right);
    loop {
        let (left_digits, right_digits) = (digits(left_rest), digits(right_rest));
        if !left_digits.is_empty() && !right_digits.is_empty() {
            let (a, b) = (left_digits.trim_start_matches('0'), right_digits.trim_start_matches('0'));
            let order = a.len().cmp(&b.len()).then_with(|| a.cmp(b));
            if order.is_ne() {
                return order;
            }
            left_rest = &left_rest[left_digits.len()..];
            right_rest = &right_rest[right_digits.len()..];
            continue;
        }
        let (mut left_chars, mut right_chars) = (left_rest.chars(), right_rest.chars());
        match (left_chars.next(), right_chars.next()) {
            (Some(a), Some(b)) if a == b => {}
            (None, None) => return left.cmp(right),
            (a, b) => return a.cmp(&b),
        }
        (left_rest, right_rest) = (left_chars.as_str(), right_chars.as_str());
    }
}

fn digits(text: &str) -> &str {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names = vec!["web.10", "web.2", "api.1", "web", "web.02", "web.1"];
        names.sort_by(|a, b| compare(a, b));
        assert_eq!(names, ["api.1", "web", "web.1", "web.02", "web.2", "web.10"]);
    }

    proptest! {
        #[test]
        fn is_an_order(a in "[a-c0-9.]{0,6}", b in "[a-c0-9.]{0,6}", c in "[a-c0-9.]{0,6}") {
            prop_assert_eq!(compare(&a, &b), compare(&b, &a).reverse());
            prop_assert_eq!(compare(&a, &b).is_eq(), a == b);
            if compare(&a, &b).is_le() && compare(&b, &c).is_le() {
                prop_assert!(compare(&a, &c).is_le());
            }
        }
    }
}
