//! The largest packet on a network.

use std::net::IpAddr;

use skep_proto::validate::network::smallest_mtu;

/// Outer Ethernet, IPv4, UDP and VXLAN headers of a frame (RFC 7348, 5).
const PLAIN_V4: u32 = 50;
/// The same over IPv6.
const PLAIN_V6: u32 = 70;
/// WireGuard over IPv6 (80) and VXLAN over IPv4 inside.
const ENCRYPTED: u32 = 130;

/// What lies between a network's packets and the underlay.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Carrier {
    /// VXLAN to these addresses' family.
    Plain(IpAddr),
    /// VXLAN in WireGuard.
    Encrypted,
    /// Nothing: the network is this host's own.
    Local,
}

/// Why a network cannot have the MTU that was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MtuError {
    /// It is no number.
    #[error("option mtu: {0:?} is no number")]
    NoNumber(String),
    /// It does not fit this host's underlay.
    #[error(
        "option mtu: {wanted} does not fit: this host's underlay has an MTU of {underlay}, of which {words} takes {cost}, so \
         that {largest} is the largest that fits"
    )]
    Large {
        /// What was asked for.
        wanted: u32,
        /// What the host's own device carries.
        underlay: u32,
        /// What takes part of it.
        words: &'static str,
        /// How much.
        cost: u32,
        /// What fits.
        largest: u32,
    },
    /// It does not fit a network that does not leave the host.
    #[error("option mtu: {wanted} does not fit: a network of this host alone has an MTU of {largest} at most")]
    LargeLocal {
        /// What was asked for.
        wanted: u32,
        /// What fits.
        largest: u32,
    },
    /// It is less than IP works with.
    #[error("an MTU of {mtu} is too small: it has to be {smallest} at least")]
    Small {
        /// What was asked for, or what is left of the underlay's.
        mtu: u32,
        /// What works.
        smallest: u32,
    },
}

/// Bytes around a network's packet on the underlay.
pub fn cost(carrier: Carrier) -> u32 {
    match carrier {
        Carrier::Plain(IpAddr::V4(_)) => PLAIN_V4,
        Carrier::Plain(IpAddr::V6(_)) => PLAIN_V6,
        Carrier::Encrypted => ENCRYPTED,
        Carrier::Local => 0,
    }
}

/// The MTU of a network over an underlay of `underlay` bytes; `wanted` is its option `mtu`, `ipv6` whether it has a subnet
/// of IPv6.
///
/// # Errors
/// [`MtuError`].
pub fn mtu(underlay: u32, carrier: Carrier, wanted: Option<&str>, ipv6: bool) -> Result<u32, MtuError> {
    let cost = cost(carrier);
    let largest = underlay.saturating_sub(cost);
    let smallest = smallest_mtu(ipv6);
    let mtu = match wanted {
        None => largest,
        Some(text) => text.parse().map_err(|_| MtuError::NoNumber(text.to_owned()))?,
    };
    let words = match carrier {
        Carrier::Plain(_) => "VXLAN",
        Carrier::Encrypted => "VXLAN in WireGuard",
        Carrier::Local if mtu > largest => return Err(MtuError::LargeLocal { wanted: mtu, largest }),
        Carrier::Local => "",
    };
    match mtu {
        wanted if wanted > largest => Err(MtuError::Large { wanted, underlay, words, cost, largest }),
        mtu if mtu < smallest => Err(MtuError::Small { mtu, smallest }),
        mtu => Ok(mtu),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_fits() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(mtu(1500, Carrier::Plain(v4), None, false), Ok(1450));
        assert_eq!(mtu(1500, Carrier::Plain(v6), None, true), Ok(1430));
        assert_eq!(mtu(1500, Carrier::Encrypted, None, true), Ok(1370));
        assert_eq!(mtu(9000, Carrier::Plain(v4), Some("1400"), true), Ok(1400));
        assert_eq!(mtu(1500, Carrier::Local, None, false), Ok(1500));
        assert_eq!(mtu(1500, Carrier::Encrypted, Some("576"), false), Ok(576), "IPv4 alone does with less");
    }

    #[test]
    fn what_does_not() {
        let carrier = Carrier::Encrypted;
        let small = |mtu| Err(MtuError::Small { mtu, smallest: 1280 });
        assert_eq!(mtu(1500, carrier, Some("576"), true), small(576));
        assert_eq!(mtu(1300, carrier, None, true), small(1170));
        assert_eq!(mtu(1500, carrier, Some("much"), false), Err(MtuError::NoNumber("much".to_owned())));
        let says = |underlay, carrier, wanted| mtu(underlay, carrier, Some(wanted), false).unwrap_err().to_string();
        assert_eq!(
            says(1500, carrier, "9000"),
            "option mtu: 9000 does not fit: this host's underlay has an MTU of 1500, of which VXLAN in WireGuard takes 130, so \
             that 1370 is the largest that fits"
        );
        let plain = says(1500, Carrier::Plain(IpAddr::from([10, 0, 0, 1])), "1451");
        assert!(plain.contains("of which VXLAN takes 50, so that 1450 is"), "{plain}");
        let local = says(1500, Carrier::Local, "9000");
        assert_eq!(local, "option mtu: 9000 does not fit: a network of this host alone has an MTU of 1500 at most");
    }
}
