//! Addresses of managers, as people write them: `tcp://a:2377,tcp://b:2377`, also `a,b:2377,[fd00::1]`. Pure.

use std::net::Ipv6Addr;

/// The managers' port, where none is said.
const PORT: u16 = 2377;
/// More managers than any swarm has.
const MOST: usize = 64;
/// The longest name of a host (RFC 1035 section 2.3.4).
const LONGEST: usize = 253;

/// Why a text is no list of addresses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HostsError {
    /// Nothing between two commas, or nothing at all.
    #[error("an address is empty: write them as tcp://HOST[:PORT], with commas in between")]
    Empty,
    /// More than [`MOST`].
    #[error("there are more than {MOST} addresses")]
    TooMany,
    /// Neither a name nor an IP address.
    #[error("{0:?} is no address of a host: write it as tcp://HOST[:PORT], an IPv6 address in brackets")]
    Host(String),
    /// Not 1 to 65535.
    #[error("{0:?} has no valid port: write it as tcp://HOST[:PORT]")]
    Port(String),
    /// Another scheme.
    #[error("{0:?} is no tcp:// address")]
    Scheme(String),
}

/// The addresses as `host:port`, in order, each once.
pub(crate) fn parse(text: &str) -> Result<Vec<String>, HostsError> {
    let mut hosts = Vec::new();
    for one in text.split(',') {
        let host = address(one.trim())?;
        if !hosts.contains(&host) {
            hosts.push(host);
        }
        if hosts.len() > MOST {
            return Err(HostsError::TooMany);
        }
    }
    Ok(hosts)
}

/// The list as it is shown and parsed again.
pub(crate) fn show(hosts: &[String]) -> String {
    hosts.iter().map(|host| format!("tcp://{host}")).collect::<Vec<_>>().join(",")
}

fn address(text: &str) -> Result<String, HostsError> {
    let rest = match text.split_once("://") {
        Some(("tcp", rest)) => rest,
        Some(_) => return Err(HostsError::Scheme(text.to_owned())),
        None => text,
    };
    if rest.is_empty() {
        return Err(HostsError::Empty);
    }
    let bad_host = || HostsError::Host(text.to_owned());
    let (host, port) = if let Some(bracketed) = rest.strip_prefix('[') {
        let (address, after) = bracketed.split_once(']').ok_or_else(bad_host)?;
        let address: Ipv6Addr = address.parse().map_err(|_| bad_host())?;
        let port = match after.strip_prefix(':') {
            Some(port) => Some(port),
            None if after.is_empty() => None,
            None => return Err(bad_host()),
        };
        (format!("[{address}]"), port)
    } else {
        let (name, port) = rest.split_once(':').map_or((rest, None), |(name, port)| (name, Some(port)));
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if name.is_empty() || name.len() > LONGEST || !name.chars().all(is_name) {
            return Err(bad_host());
        }
        (name.to_owned(), port)
    };
    let number = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit()).then(|| port.parse::<u16>().ok())?;
    let port = match port {
        None => PORT,
        Some(port) => number(port).filter(|port| *port != 0).ok_or_else(|| HostsError::Port(text.to_owned()))?,
    };
    Ok(format!("{host}:{port}"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, expected) in [
            ("tcp://10.0.0.1:2377", vec!["10.0.0.1:2377"]),
            ("10.0.0.1", vec!["10.0.0.1:2377"]),
            ("tcp://a:1,tcp://b, c.example:65535", vec!["a:1", "b:2377", "c.example:65535"]),
            ("tcp://[fd00::1]:99,[FD00:0::2]", vec!["[fd00::1]:99", "[fd00::2]:2377"]),
            ("a,tcp://a:2377", vec!["a:2377"]),
        ] {
            let hosts = parse(text).unwrap();
            assert_eq!(hosts, expected, "{text}");
            assert_eq!(parse(&show(&hosts)).unwrap(), hosts);
        }
    }

    #[test]
    fn what_is_none_is_refused() {
        for text in ["", ",", "a,,b", "tcp://", "a:"] {
            assert!(parse(text).is_err(), "{text:?}");
        }
        for text in ["a:0", "a:65536", "a:+1", "a:b", "a:1:2", "[::1]:"] {
            assert_eq!(parse(text), Err(HostsError::Port(text.to_owned())), "{text:?}");
        }
        for text in ["fd00::1", "[fd00", "[x]:1", "[::1]1", "a b", "a/b", "ä", &"x".repeat(254)] {
            assert!(matches!(parse(text), Err(HostsError::Host(_) | HostsError::Port(_))), "{text:?}");
        }
        assert_eq!(parse("https://a"), Err(HostsError::Scheme("https://a".to_owned())));
        let many: Vec<String> = (0..65).map(|n| format!("h{n}")).collect();
        assert_eq!(parse(&many.join(",")), Err(HostsError::TooMany));
    }
}
