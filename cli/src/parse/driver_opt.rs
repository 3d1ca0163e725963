//! `--opt` of `network create`: the options of its driver, with Docker's names for what has another one here.

use std::collections::BTreeMap;

use super::ParseError;

/// Docker's name for the MTU.
const DOCKERS_MTU: &str = "com.docker.network.driver.mtu";

/// Reads `name=value`; a name alone has no value, except `encrypted`, which is switched on by it, as in
/// Docker, and `keep-source`.
pub(crate) fn options(list: &[String]) -> Result<BTreeMap<String, String>, ParseError> {
    let mut options = BTreeMap::new();
    for text in list {
        let (name, value) = text.split_once('=').unwrap_or((text, ""));
        let (name, value) = match (name.trim(), value) {
            ("", _) => return Err(ParseError::invalid(format!("{text:?} has no name: write name=value"))),
            (name @ ("encrypted" | "keep-source"), "") => (name, "true"),
            (DOCKERS_MTU, value) => ("mtu", value),
            (name, value) => (name, value),
        };
        if options.insert(name.to_owned(), value.to_owned()).is_some_and(|other| other != value) {
            return Err(ParseError::invalid(format!("{name:?} is given twice, with different values")));
        }
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn read(items: &[&str]) -> Result<BTreeMap<String, String>, ParseError> {
        options(&items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_of_docker() {
        let options = read(&["encrypted", "com.docker.network.driver.mtu=1400", "parent=eth0.10"]).unwrap();
        let pairs: Vec<String> = options.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(pairs, ["encrypted=true", "mtu=1400", "parent=eth0.10"]);
        assert_eq!(read(&["keep-source"]).unwrap()["keep-source"], "true");
        assert_eq!(read(&["encrypted=false"]).unwrap()["encrypted"], "false");
        assert_eq!(read(&["mtu"]).unwrap()["mtu"], "");
        for wrong in [&["=x"][..], &[""], &["mtu=1", "com.docker.network.driver.mtu=2"]] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
    }
}
