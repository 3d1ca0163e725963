//! Ranges of addresses, `10.0.1.0/24`: what networks, address pools and routes are written in. Pure; IPv4 and IPv6.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A range of addresses with a common prefix (RFC 4632, RFC 4291 section 2.3). Sorted by family, first address, length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Cidr {
    first: IpAddr,
    length: u8,
}

/// Why a text is not a range of addresses.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// No address, no length, or a length beyond the family's.
    #[error("{0:?} is not a range of addresses: write it like 10.0.1.0/24 or fd00:1::/64")]
    Malformed(String),
    /// Bits are set behind the prefix.
    #[error("{given} has bits set behind its prefix: {meant} is meant")]
    HostBits { given: String, meant: Cidr },
}

impl Cidr {
    /// The range that `address` lies in. `None`: `length` is beyond 32, or 128 for IPv6.
    pub fn around(address: IpAddr, length: u8) -> Option<Self> {
        let bits = family_bits(address);
        if length > bits {
            return None;
        }
        let host = mask(bits - length);
        Some(Self { first: like(address, number(address) & !host), length })
    }

    /// The first address: the network's own.
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The last address; with IPv4 the broadcast address.
    pub fn last(&self) -> IpAddr {
        like(self.first, number(self.first) | self.host_mask())
    }

    /// Length of the prefix.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether its addresses are IPv4.
    pub fn is_ipv4(&self) -> bool {
        self.first.is_ipv4()
    }

    /// How many addresses it has; 2^128 is told as 2^128 - 1.
    pub fn size(&self) -> u128 {
        self.host_mask().saturating_add(1)
    }

    /// Whether the address lies in it. Never across families.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.first.is_ipv4() == address.is_ipv4() && number(address) & !self.host_mask() == number(self.first)
    }

    /// Whether all of `other` lies in it.
    pub fn covers(&self, other: &Self) -> bool {
        other.length >= self.length && self.contains(other.first)
    }

    /// Whether they have an address in common: then one covers the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The first and last address that a host may have: without the network's and IPv4's broadcast address, except where
    /// there is no room for those (/31: RFC 3021, /127: RFC 6164, single addresses).
    pub fn hosts(&self) -> (IpAddr, IpAddr) {
        let (first, last) = (self.first, self.last());
        if self.host_mask() <= 1 {
            return (first, last);
        }
        let broadcast = u128::from(self.is_ipv4());
        (like(first, number(first) + 1), like(last, number(last) - broadcast))
    }

    /// The address `offset` places after the first. `None`: it is beyond the range.
    pub fn nth(&self, offset: u128) -> Option<IpAddr> {
        (offset <= self.host_mask()).then(|| like(self.first, number(self.first) | offset))
    }

    /// How far an address of the range is from its first. `None`: it is not in it.
    pub fn offset(&self, address: IpAddr) -> Option<u128> {
        self.contains(address).then(|| number(address) & self.host_mask())
    }

    /// The range of the same length that follows. `None`: it is the last of the family.
    pub fn next(&self) -> Option<Self> {
        let first = next(self.last())?;
        Some(Self { first, length: self.length })
    }

    fn host_mask(&self) -> u128 {
        mask(family_bits(self.first) - self.length)
    }
}

/// The address after this one. `None`: it is the last of its family.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(Ipv4Addr::from_bits(address.to_bits().checked_add(1)?))),
        IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits().checked_add(1)?))),
    }
}

/// The address before this one. `None`: it is the first of its family.
pub fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(address) => Some(IpAddr::V4(Ipv4Addr::from_bits(address.to_bits().checked_sub(1)?))),
        IpAddr::V6(address) => Some(IpAddr::V6(Ipv6Addr::from_bits(address.to_bits().checked_sub(1)?))),
    }
}

/// An address of 4 or 16 bytes, as messages carry it.
pub fn address_from_wire(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(IpAddr::from(bytes));
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// The bytes of an address in messages: 4 or 16.
pub fn address_to_wire(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn family_bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(address.to_bits()),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// The address of that number, in the family of `family`.
fn like(family: IpAddr, number: u128) -> IpAddr {
    match family {
        // Masks never leave the 32 bits that an IPv4 address has.
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from_bits((number & u128::from(u32::MAX)) as u32)),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from_bits(number)),
    }
}

/// The lowest `bits` bits.
fn mask(bits: u8) -> u128 {
    match bits {
        0 => 0,
        bits => u128::MAX >> (128 - u32::from(bits)),
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.first, self.length)
    }
}

impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let malformed = || CidrError::Malformed(text.to_owned());
        let (address, length) = text.split_once('/').ok_or_else(malformed)?;
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|digit| digit.is_ascii_digit()) {
            return Err(malformed());
        }
        let length = length.parse().map_err(|_| malformed())?;
        let meant = Self::around(address, length).ok_or_else(malformed)?;
        if meant.first != address {
            return Err(CidrError::HostBits { given: text.to_owned(), meant });
        }
        Ok(meant)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn ranges_know_their_ends() {
        let range = cidr("10.0.1.0/24");
        assert_eq!((range.first(), range.last()), (ip("10.0.1.0"), ip("10.0.1.255")));
        assert_eq!(range.hosts(), (ip("10.0.1.1"), ip("10.0.1.254")));
        assert_eq!((range.size(), range.nth(5), range.nth(256)), (256, Some(ip("10.0.1.5")), None));
        assert_eq!(cidr("10.0.0.0/31").hosts(), (ip("10.0.0.0"), ip("10.0.0.1")));
        assert_eq!(cidr("10.0.0.7/32").hosts(), (ip("10.0.0.7"), ip("10.0.0.7")));
        assert_eq!(cidr("fd00::/64").hosts(), (ip("fd00::1"), ip("fd00::ffff:ffff:ffff:ffff")));
        assert_eq!(cidr("0.0.0.0/0").last(), ip("255.255.255.255"));
        assert_eq!((cidr("::/0").size(), cidr("::/0").next()), (u128::MAX, None));
        assert_eq!(cidr("10.0.255.0/24").next(), Some(cidr("10.1.0.0/24")));
        assert_eq!(cidr("255.255.255.0/24").next(), None);
    }

    #[test]
    fn families_never_meet() {
        assert!(!cidr("0.0.0.0/0").contains(ip("::1")));
        assert!(!cidr("::/0").overlaps(&cidr("0.0.0.0/0")));
    }

    #[test]
    fn mistakes_are_named() {
        for text in ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/+8", "10.0.0/8", "x/8", "::/129", "::/0000"]
        {
            assert!(matches!(text.parse::<Cidr>(), Err(CidrError::Malformed(_))), "{text}");
        }
        let message = "10.0.1.5/24".parse::<Cidr>().unwrap_err().to_string();
        assert_eq!(message, "10.0.1.5/24 has bits set behind its prefix: 10.0.1.0/24 is meant");
    }

    fn any_range() -> impl Strategy<Value = Cidr> {
        // Few bits, so that ranges meet.
        let v4 = (0..64u32, 26..=32u8).prop_map(|(bits, length)| (IpAddr::from(bits.to_be_bytes()), length));
        let v6 = (0..64u128, 122..=128u8).prop_map(|(bits, length)| (IpAddr::from(bits.to_be_bytes()), length));
        prop_oneof![v4, v6].prop_map(|(address, length)| Cidr::around(address, length).unwrap())
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text: String) {
            let _ = text.parse::<Cidr>();
        }

        #[test]
        fn printed_ranges_are_read_back(address: u128, length in 0..=128u8) {
            let range = Cidr::around(IpAddr::from(address.to_be_bytes()), length).unwrap();
            prop_assert_eq!(range.to_string().parse::<Cidr>().unwrap(), range);
        }

        #[test]
        fn overlap_is_a_common_address(a in any_range(), b in any_range()) {
            let common = (0..a.size()).any(|offset| b.contains(a.nth(offset).unwrap()));
            prop_assert_eq!(a.overlaps(&b), common);
            prop_assert_eq!(b.overlaps(&a), common);
            let all = (0..b.size()).all(|offset| a.contains(b.nth(offset).unwrap()));
            prop_assert_eq!(a.covers(&b), all);
        }

        #[test]
        fn offsets_and_neighbours_agree(range in any_range(), offset in 0..64u128) {
            if let Some(address) = range.nth(offset) {
                prop_assert_eq!(range.offset(address), Some(offset));
                prop_assert_eq!(next(address).and_then(previous), Some(address));
                prop_assert_eq!(address_from_wire(&address_to_wire(address)), Some(address));
            } else {
                prop_assert!(offset >= range.size());
            }
        }
    }
}
