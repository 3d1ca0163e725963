//! The addresses of networks' ways out: a pair of each family, by the network's number on the host.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use skep_netlink::Prefix;

/// Networks with a way out that a host can have.
pub const INDICES: u16 = 1 << 15;
/// The pairs of IPv4: link-local ones (RFC 3927), as they are nobody else's business.
pub const V4: Prefix = Prefix { address: IpAddr::V4(Ipv4Addr::new(169, 254, 0, 0)), length: 16 };
/// The pairs of IPv6: unique local ones (RFC 4193), as link-local ones are never forwarded. "skep" is the identifier.
pub const V6: Prefix =
    Prefix { address: IpAddr::V6(Ipv6Addr::new(0xfd73, 0x6b65, 0x7000, 0, 0, 0, 0, 0)), length: 112 };
/// What the names of the host's ends begin with.
pub const DEVICES: &str = "sk-";

/// Whether a number's addresses are anybody else's by custom: clouds serve metadata, names and time to their machines in
/// 169.254.169.0/24, and to containers in 169.254.170.0/24.
pub fn is_reserved(index: u16) -> bool {
    matches!(v4(index).0.octets()[2], 169 | 170)
}

/// All pairs of a family.
pub fn all(ipv6: bool) -> Prefix {
    if ipv6 { V6 } else { V4 }
}

/// The host's end and the network's.
pub fn v4(index: u16) -> (Ipv4Addr, Ipv4Addr) {
    let base = u32::from(Ipv4Addr::new(169, 254, 0, 0)) + 2 * u32::from(index % INDICES);
    (Ipv4Addr::from(base), Ipv4Addr::from(base + 1))
}

/// The host's end and the network's.
pub fn v6(index: u16) -> (Ipv6Addr, Ipv6Addr) {
    let base = u128::from(Ipv6Addr::new(0xfd73, 0x6b65, 0x7000, 0, 0, 0, 0, 0)) + 2 * u128::from(index % INDICES);
    (Ipv6Addr::from(base), Ipv6Addr::from(base + 1))
}

/// The network's end, of a family.
pub fn inner(index: u16, ipv6: bool) -> IpAddr {
    if ipv6 { v6(index).1.into() } else { v4(index).1.into() }
}

/// Both ends with their lengths: the host's and the network's, of IPv4 and, where that is wanted, of IPv6.
pub fn pairs(index: u16, ipv6: bool) -> Vec<(Prefix, Prefix)> {
    let prefix = |address: IpAddr| Prefix { address, length: if address.is_ipv4() { 31 } else { 127 } };
    let (outer, inner) = v4(index);
    let mut pairs = vec![(prefix(outer.into()), prefix(inner.into()))];
    if ipv6 {
        let (outer, inner) = v6(index);
        pairs.push((prefix(outer.into()), prefix(inner.into())));
    }
    pairs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_lie_side_by_side_and_within_their_prefix() {
        let texts = |index| {
            let text = |(outer, inner): (Prefix, Prefix)| format!("{outer} {inner}");
            pairs(index, true).into_iter().map(text).collect::<Vec<_>>()
        };
        assert_eq!(texts(0), ["169.254.0.0/31 169.254.0.1/31", "fd73:6b65:7000::/127 fd73:6b65:7000::1/127"]);
        assert_eq!(
            texts(INDICES - 1),
            ["169.254.255.254/31 169.254.255.255/31", "fd73:6b65:7000::fffe/127 fd73:6b65:7000::ffff/127"]
        );
        assert_eq!(inner(3, true).to_string(), "fd73:6b65:7000::7");
        let reserved: Vec<u16> = (0..INDICES).filter(|index| is_reserved(*index)).collect();
        assert_eq!(reserved.len(), 256);
        assert_eq!(v4(reserved[0]).0.to_string(), "169.254.169.0");
    }
}
