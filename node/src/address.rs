//! Addresses: what a user may write, and which one to tell others when he writes none.

use std::net::{IpAddr, SocketAddr};

/// Why there is no address to tell others.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AddressError {
    #[error("{0:?} is not an address: write IP or IP:PORT")]
    Text(String),
    #[error("cannot list this host's addresses")]
    List(#[source] nix::Error),
    #[error("this host has no address besides loopback: name one with --advertise-addr")]
    NoAddress,
    #[error("this host has several addresses ({}): choose one with --advertise-addr", list(.0))]
    Several(Vec<(String, IpAddr)>),
}

/// `IP`, `IP:PORT`, `[IPv6]:PORT`.
pub(crate) fn parse(text: &str, default_port: u16) -> Result<SocketAddr, AddressError> {
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(address);
    }
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')).unwrap_or(text);
    match bare.parse::<IpAddr>() {
        Ok(ip) => Ok(SocketAddr::new(ip, default_port)),
        Err(_) => Err(AddressError::Text(text.to_owned())),
    }
}

/// The only address of this host that others could reach. IPv6 counts where there is no IPv4.
pub(crate) fn only_address() -> Result<IpAddr, AddressError> {
    let interfaces = nix::ifaddrs::getifaddrs().map_err(AddressError::List)?;
    let all: Vec<(String, IpAddr)> = interfaces
        .filter_map(|interface| {
            let address = interface.address?;
            let ip = match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
                (Some(v4), _) => IpAddr::V4(v4.ip()),
                (_, Some(v6)) => IpAddr::V6(v6.ip()),
                _ => return None,
            };
            usable(ip).then_some((interface.interface_name, ip))
        })
        .collect();
    choose(all)
}

/// Not loopback, not link-local, not unspecified.
fn usable(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local() && !v4.is_unspecified(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local() && !v6.is_unspecified(),
    }
}

fn choose(all: Vec<(String, IpAddr)>) -> Result<IpAddr, AddressError> {
    let (v4, v6): (Vec<_>, Vec<_>) = all.into_iter().partition(|(_, ip)| ip.is_ipv4());
    let candidates = if v4.is_empty() { v6 } else { v4 };
    match candidates.as_slice() {
        [] => Err(AddressError::NoAddress),
        [(_, ip)] => Ok(*ip),
        _ => Err(AddressError::Several(candidates)),
    }
}

fn list(addresses: &[(String, IpAddr)]) -> String {
    addresses.iter().map(|(interface, ip)| format!("{ip} on {interface}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_come_with_and_without_port() {
        let parsed = |text: &str| parse(text, 2377).map(|address| address.to_string()).ok();
        assert_eq!(parsed("10.0.0.1").as_deref(), Some("10.0.0.1:2377"));
        assert_eq!(parsed("10.0.0.1:99").as_deref(), Some("10.0.0.1:99"));
        assert_eq!(parsed("::1").as_deref(), Some("[::1]:2377"));
        assert_eq!(parsed("[::1]").as_deref(), Some("[::1]:2377"));
        assert_eq!(parsed("host"), None);
    }

    #[test]
    fn one_address_is_taken_and_several_are_named() {
        let at = |name: &str, ip: &str| (name.to_owned(), ip.parse().expect("an address"));
        assert!(matches!(choose(vec![at("eth0", "10.0.0.1"), at("eth0", "fd00::1")]), Ok(IpAddr::V4(_))));
        assert!(matches!(choose(vec![at("eth0", "fd00::1")]), Ok(IpAddr::V6(_))));
        assert!(matches!(choose(vec![]), Err(AddressError::NoAddress)));
        let message = choose(vec![at("eth0", "10.0.0.1"), at("eth1", "10.1.0.1")]).expect_err("two").to_string();
        assert!(message.contains("10.0.0.1 on eth0, 10.1.0.1 on eth1"), "{message}");
    }
}
