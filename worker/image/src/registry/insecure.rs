//! The list of registries that need no verified TLS. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// One entry of the list: `host`, `host:port`, or a network `10.0.0.0/8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InsecureEntry {
    /// Without port: all ports of the host.
    Host(String),
    /// Every registry with an address in it, written as an address.
    Network(IpAddr, u8),
}

/// Why a text is not an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid insecure registry {0:?}: use host, host:port or a network such as 10.0.0.0/8, without http://")]
pub struct InsecureEntryError(String);

impl FromStr for InsecureEntry {
    type Err = InsecureEntryError;

    fn from_str(text: &str) -> Result<Self, InsecureEntryError> {
        let bad = || InsecureEntryError(text.to_owned());
        if let Some((address, length)) = text.split_once('/') {
            let address: IpAddr = address.parse().map_err(|_| bad())?;
            let length: u8 = length.parse().map_err(|_| bad())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            return if length <= most { Ok(Self::Network(address, length)) } else { Err(bad()) };
        }
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        if let Ok(address) = bare.parse::<IpAddr>() {
            return Ok(Self::Network(address, if address.is_ipv4() { 32 } else { 128 }));
        }
        // A registry of a reference has the same form.
        let probe = format!("{text}/x");
        match crate::reference::Reference::parse(&probe) {
            Ok(reference) if reference.domain().eq_ignore_ascii_case(text) => Ok(Self::Host(text.to_ascii_lowercase())),
            // A host without dot and port reads as part of the path.
            Ok(_) if !text.contains('/') => Ok(Self::Host(text.to_ascii_lowercase())),
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for InsecureEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => f.write_str(host),
            Self::Network(address, length) => write!(f, "{address}/{length}"),
        }
    }
}

/// Whether the registry `domain` (`host` or `host:port`) is on the list or on loopback.
pub(super) fn is_insecure(domain: &str, list: &[InsecureEntry]) -> bool {
    let domain = domain.to_ascii_lowercase();
    let host = host_of(&domain);
    let address: Option<IpAddr> = host.parse().ok();
    if host == "localhost" || address.is_some_and(|address| address.is_loopback()) {
        return true;
    }
    list.iter().any(|entry| match entry {
        InsecureEntry::Host(listed) => *listed == domain || *listed == host,
        InsecureEntry::Network(network, length) => address.is_some_and(|address| contains(*network, *length, address)),
    })
}

/// Without port and brackets.
fn host_of(domain: &str) -> &str {
    if let Some(rest) = domain.strip_prefix('[') {
        return rest.split(']').next().unwrap_or(rest);
    }
    domain.split(':').next().unwrap_or(domain)
}

fn contains(network: IpAddr, length: u8, address: IpAddr) -> bool {
    match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0);
            network.to_bits() & mask == address.to_bits() & mask
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn entries_match_what_they_say() {
        let list: Vec<InsecureEntry> =
            ["Registry.example", "other.example:5000", "10.0.0.0/8", "0.0.0.0/32", "fd00::/16", "reg", "[fe80::1]"]
                .iter()
                .map(|e| e.parse().unwrap())
                .collect();
        for yes in [
            "localhost",
            "localhost:5000",
            "127.1.2.3:1",
            "[::1]:5000",
            "registry.example",
            "registry.example:99",
            "other.example:5000",
            "10.9.9.9:80",
            "[fd00::1]",
            "[fe80::1]:5000",
            "reg:5000",
        ] {
            assert!(is_insecure(yes, &list), "{yes}");
        }
        for no in ["docker.io", "other.example", "other.example:5001", "11.0.0.1", "xlocalhost", "notregistry.example"]
        {
            assert!(!is_insecure(no, &list), "{no}");
        }
    }

    #[test]
    fn bad_entries_are_refused() {
        for bad in ["", "http://x", "10.0.0.0/33", "a/b", "x:port"] {
            assert!(bad.parse::<InsecureEntry>().is_err(), "{bad}");
        }
        assert_eq!("10.0.0.0/8".parse::<InsecureEntry>().unwrap().to_string(), "10.0.0.0/8");
    }
}
