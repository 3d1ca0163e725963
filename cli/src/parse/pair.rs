//! `key=value` pairs: labels, sysctls; and `host:address` lines.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::ParseError;

/// Labels; a key alone has an empty value, a later one wins.
pub(crate) fn labels(list: &[String]) -> Result<BTreeMap<String, String>, ParseError> {
    list.iter()
        .map(|text| {
            let (key, value) = text.split_once('=').unwrap_or((text, ""));
            if key.trim().is_empty() {
                return Err(ParseError::invalid(format!("{text:?} has no name: write name=value")));
            }
            Ok((key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Kernel parameters: both parts are needed.
pub(crate) fn sysctls(list: &[String]) -> Result<BTreeMap<String, String>, ParseError> {
    list.iter()
        .map(|text| match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(ParseError::invalid(format!("{text:?} is not of the form name=value"))),
        })
        .collect()
}

/// An extra line of /etc/hosts, `name:address`; IPv6 addresses may be in brackets.
pub(crate) fn host(text: &str) -> Result<String, ParseError> {
    let invalid = || ParseError::invalid(format!("{text:?} is not of the form name:address"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(invalid)?;
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(invalid());
    }
    if address == "host-gateway" {
        return Err(ParseError::unsupported("name:host-gateway"));
    }
    let bare = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    let address: IpAddr = bare.parse().map_err(|_| ParseError::invalid(format!("{address:?} is not an IP address")))?;
    Ok(format!("{name}:{address}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn list(items: &[&str]) -> Vec<String> {
        items.iter().map(|item| (*item).to_owned()).collect()
    }

    #[test]
    fn label_forms() {
        let labels = labels(&list(&["a=b", "c", "d=e=f", "a=z"])).unwrap();
        assert_eq!(labels["a"], "z");
        assert_eq!(labels["c"], "");
        assert_eq!(labels["d"], "e=f");
        assert!(super::labels(&list(&["=x"])).is_err());
        assert!(sysctls(&list(&["net.core.somaxconn"])).is_err());
        assert_eq!(sysctls(&list(&["a.b=1"])).unwrap()["a.b"], "1");
    }

    #[test]
    fn host_lines() {
        assert_eq!(host("db:10.0.0.1").unwrap(), "db:10.0.0.1");
        assert_eq!(host("db:[::1]").unwrap(), "db:::1");
        assert_eq!(host("db:2001:db8::1").unwrap(), "db:2001:db8::1");
        for wrong in ["db", ":10.0.0.1", "db:nowhere", "db:", "a b:10.0.0.1"] {
            assert!(host(wrong).is_err(), "{wrong}");
        }
        assert!(matches!(host("x:host-gateway"), Err(ParseError::Unsupported(_))));
    }
}
