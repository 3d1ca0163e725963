//! `--entrypoint`: one string into words, with a shell's quoting and nothing else of a shell.

use super::ParseError;

/// Splits at white space outside of quotes; `\` protects the next character, except within single quotes.
pub(crate) fn words(text: &str) -> Result<Vec<String>, ParseError> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            c if c.is_whitespace() => words.extend(word.take()),
            '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('\'') => break,
                        Some(c) => word.push(c),
                        None => return Err(no_end(text)),
                    }
                }
            }
            '"' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next() {
                        Some('"') => break,
                        Some('\\') => match chars.next() {
                            Some(c @ ('"' | '\\' | '$' | '`')) => word.push(c),
                            Some(c) => word.extend(['\\', c]),
                            None => return Err(no_end(text)),
                        },
                        Some(c) => word.push(c),
                        None => return Err(no_end(text)),
                    }
                }
            }
            '\\' => match chars.next() {
                Some(c) => word.get_or_insert_default().push(c),
                None => return Err(ParseError::invalid(format!("{text:?} ends with a backslash"))),
            },
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

fn no_end(text: &str) -> ParseError {
    ParseError::invalid(format!("{text:?} has a quote without an end"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quoting() {
        assert_eq!(words("sh -c 'echo \"a b\"'").unwrap(), ["sh", "-c", "echo \"a b\""]);
        assert_eq!(words(r#"a\ b "c \"d\" \x" ''"#).unwrap(), ["a b", r#"c "d" \x"#, ""]);
        assert!(words("").unwrap().is_empty());
        for wrong in ["'a", "\"a", "a\\"] {
            assert!(words(wrong).is_err(), "{wrong}");
        }
    }
}
