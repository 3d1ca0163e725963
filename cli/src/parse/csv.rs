//! Comma-separated `key=value` fields with CSV quoting, as `--mount` and `--publish` take them.

use super::ParseError;

/// Splits `a=b,"c=d,e",f` at commas outside of quotes; `""` within quotes is a quote.
pub(crate) fn fields(text: &str) -> Result<Vec<String>, ParseError> {
    let mut fields = Vec::new();
    let mut field = String::new();
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '"' if quoted && chars.next_if_eq(&'"').is_some() => field.push('"'),
            '"' if quoted => quoted = false,
            '"' if field.is_empty() => quoted = true,
            ',' if !quoted => fields.push(std::mem::take(&mut field)),
            _ => field.push(c),
        }
    }
    if quoted {
        return Err(ParseError::invalid(format!("{text:?} has a quote without an end")));
    }
    fields.push(field);
    Ok(fields)
}

/// Splits a field at its first `=`; the key is lower-cased. `None` value: there is no `=`.
pub(crate) fn key_value(field: &str) -> (String, Option<&str>) {
    match field.split_once('=') {
        Some((key, value)) => (key.trim().to_lowercase(), Some(value)),
        None => (field.trim().to_lowercase(), None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn quotes_protect_commas() {
        assert_eq!(fields("a=b,c").unwrap(), ["a=b", "c"]);
        assert_eq!(fields("\"source=/a,b\",t=\"x\"").unwrap(), ["source=/a,b", "t=\"x\""]);
        assert_eq!(fields("\"say \"\"hi\"\"\"").unwrap(), ["say \"hi\""]);
        assert_eq!(fields("").unwrap(), [""]);
        assert!(fields("\"open").is_err());
    }

    #[test]
    fn keys_are_lower_case() {
        assert_eq!(key_value("Type=Bind"), ("type".to_owned(), Some("Bind")));
        assert_eq!(key_value("readonly"), ("readonly".to_owned(), None));
    }
}
