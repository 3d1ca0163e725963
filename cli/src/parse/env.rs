//! `--env` and `--env-file`. The caller passes its environment in, so that tests need none.

use super::ParseError;

/// One `--env`: `NAME=value`, or `NAME`, which takes the caller's value; a name that the caller has not set stays alone
/// and removes the image's variable.
pub(crate) fn variable(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<String, ParseError> {
    let name = text.split_once('=').map_or(text, |(name, _)| name);
    if name.is_empty() {
        return Err(ParseError::invalid(format!("{text:?} has no variable name")));
    }
    if text.contains('\0') {
        return Err(ParseError::invalid("a variable must not contain a NUL"));
    }
    if text.contains('=') {
        return Ok(text.to_owned());
    }
    Ok(lookup(name).map_or_else(|| name.to_owned(), |value| format!("{name}={value}")))
}

/// The lines of an `--env-file`: `#` begins a comment line, blank lines do not count, values are taken as they are (no
/// quotes, no expansion). A name alone takes the caller's value, or is left out.
pub(crate) fn file(text: &str, lookup: impl Fn(&str) -> Option<String>) -> Result<Vec<String>, ParseError> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut variables = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let number = index + 1;
        let (name, value) = match line.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (line, lookup(line.trim())),
        };
        let name = if value.is_none() || !line.contains('=') { name.trim() } else { name };
        if name.is_empty() {
            return Err(ParseError::invalid(format!("line {number} has no variable name")));
        }
        if name.contains(char::is_whitespace) {
            return Err(ParseError::invalid(format!("line {number}: variable {name:?} contains white space")));
        }
        if let Some(value) = value {
            variables.push(format!("{name}={value}"));
        }
    }
    Ok(variables)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn caller(name: &str) -> Option<String> {
        (name == "HOME").then(|| "/root".to_owned())
    }

    #[test]
    fn variables() {
        assert_eq!(variable("A=b=c", caller).unwrap(), "A=b=c");
        assert_eq!(variable("HOME", caller).unwrap(), "HOME=/root");
        assert_eq!(variable("GONE", caller).unwrap(), "GONE");
        assert_eq!(variable("A=", caller).unwrap(), "A=");
        assert!(variable("=x", caller).is_err());
        assert!(variable("", caller).is_err());
    }

    #[test]
    fn files() {
        let text = "\u{feff}# comment\n\nA=b c \n  B=\"q\"\nHOME\nGONE\n";
        assert_eq!(file(text, caller).unwrap(), ["A=b c ", "B=\"q\"", "HOME=/root"]);
        assert!(file("bad name=x", caller).unwrap_err().to_string().contains("line 1"));
        assert!(file("A=b\n=x", caller).unwrap_err().to_string().contains("line 2"));
    }
}
