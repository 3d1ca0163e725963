//! Addresses as netlink has them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddress(pub [u8; 6]);

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Text that is no address.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not {1}")]
pub struct InvalidAddress(String, &'static str);

impl FromStr for MacAddress {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidAddress(text.to_owned(), "an Ethernet address");
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|part| part.len() == 2 && !part.starts_with('+')).ok_or_else(invalid)?;
            *octet = u8::from_str_radix(part, 16).map_err(|_| invalid())?;
        }
        parts.next().map_or(Ok(Self(octets)), |_| Err(invalid()))
    }
}

/// An address and how many of its bits name the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// With or without the bits behind the network's.
    pub address: IpAddr,
    /// 0 to 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// `None` where `length` is more than the address has bits.
    pub fn new(address: impl Into<IpAddr>, length: u8) -> Option<Self> {
        let address = address.into();
        (length <= bits(address)).then_some(Self { address, length })
    }

    /// The whole address.
    pub fn host(address: impl Into<IpAddr>) -> Self {
        let address = address.into();
        Self { address, length: bits(address) }
    }

    /// 0.0.0.0/0.
    pub const DEFAULT_V4: Self = Self { address: IpAddr::V4(Ipv4Addr::UNSPECIFIED), length: 0 };
    /// ::/0.
    pub const DEFAULT_V6: Self = Self { address: IpAddr::V6(Ipv6Addr::UNSPECIFIED), length: 0 };

    /// `AF_INET` or `AF_INET6`.
    pub(crate) fn family(self) -> u8 {
        family(self.address)
    }

    /// The mask, as long as the address.
    pub fn mask(self) -> IpAddr {
        match self.address {
            IpAddr::V4(_) => {
                Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(self.length.min(32))).unwrap_or(0)).into()
            }
            IpAddr::V6(_) => {
                Ipv6Addr::from_bits(u128::MAX.checked_shl(128 - u32::from(self.length.min(128))).unwrap_or(0)).into()
            }
        }
    }

    /// The address with all bits behind the network's zero.
    pub fn network(self) -> IpAddr {
        match (self.address, self.mask()) {
            (IpAddr::V4(address), IpAddr::V4(mask)) => (address & mask).into(),
            (IpAddr::V6(address), IpAddr::V6(mask)) => (address & mask).into(),
            (address, _) => address,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

impl FromStr for Prefix {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text
            .split_once('/')
            .and_then(|(address, length)| Self::new(address.parse::<IpAddr>().ok()?, length.parse().ok()?));
        parts.ok_or_else(|| InvalidAddress(text.to_owned(), "an address with a prefix length"))
    }
}

/// `AF_INET` or `AF_INET6`, as the fixed headers of netlink have it.
pub(crate) fn family(address: IpAddr) -> u8 {
    match address {
        IpAddr::V4(_) => crate::kernel::AF_INET,
        IpAddr::V6(_) => crate::kernel::AF_INET6,
    }
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn text_and_back() {
        let mac: MacAddress = "02:42:0a:00:00:ff".parse().unwrap();
        assert_eq!((mac.0, mac.to_string().as_str()), ([2, 0x42, 10, 0, 0, 255], "02:42:0a:00:00:ff"));
        for wrong in
            ["", "02:42:0a:00:00", "02:42:0a:00:00:ff:00", "2:42:0a:00:00:ff", "+2:42:0a:00:00:ff", "gg:42:0a:00:00:ff"]
        {
            assert!(wrong.parse::<MacAddress>().is_err(), "{wrong}");
        }
        for text in ["10.0.0.1/24", "fd00::1/64", "0.0.0.0/0", "::/0"] {
            assert_eq!(text.parse::<Prefix>().unwrap().to_string(), text);
        }
        for wrong in ["10.0.0.1", "10.0.0.1/33", "fd00::/129", "10.0.0/8", "10.0.0.1/-1"] {
            assert!(wrong.parse::<Prefix>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn masks() {
        let network = |text: &str| text.parse::<Prefix>().unwrap().network().to_string();
        assert_eq!(network("10.1.2.3/24"), "10.1.2.0");
        assert_eq!(network("10.1.2.3/0"), "0.0.0.0");
        assert_eq!(network("10.1.2.3/32"), "10.1.2.3");
        assert_eq!(network("fd00:1:2::3/32"), "fd00:1::");
        assert_eq!(network("fd00::3/0"), "::");
    }
}
