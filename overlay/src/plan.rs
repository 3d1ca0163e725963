//! What a host has to do about its networks' tables. Pure: tables and what changed in them in, entries and transactions
//! out.
//!
//! Used by [`crate::netd`], which carries it out. Every plan is kept up to date by changes, and is the same then as one that
//! was made from the whole table at once (property tests hold them to it).

pub mod balance;
pub mod drain;
pub mod forwarding;
pub mod ingress;
pub mod keep;
pub mod local;
pub mod mesh;
pub mod mtu;
pub mod names;
pub mod out;
pub mod wireguard;

use std::net::IpAddr;

use skep_netlink::MacAddress;

/// The Ethernet address of an endpoint: 02:42 and its IPv4 address, so that none has to travel. Of one with an IPv6 address
/// only, the last four bytes of that.
pub fn mac(address: IpAddr) -> MacAddress {
    let [a, b, c, d] = match address {
        IpAddr::V4(address) => address.octets(),
        IpAddr::V6(address) => {
            let octets = address.octets();
            [octets[12], octets[13], octets[14], octets[15]]
        }
    };
    MacAddress([0x02, 0x42, a, b, c, d])
}

/// The Ethernet address of a host with these addresses: by the IPv4 one, where there is one.
pub fn mac_of(addresses: &[IpAddr]) -> Option<MacAddress> {
    addresses.iter().find(|address| address.is_ipv4()).or_else(|| addresses.first()).map(|address| mac(*address))
}
