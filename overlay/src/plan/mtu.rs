//! The largest packet on a network.

use std::net::IpAddr;

/// Smallest that IPv6 works with (RFC 8200, 5); anything less is a mistake.
const SMALLEST: u32 = 1280;
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
    #[error("option mtu: {wanted} does not fit: this host's underlay carries {largest} bytes at most")]
    Large {
        /// What was asked for.
        wanted: u32,
        /// What fits.
        largest: u32,
    },
    /// It is less than IP works with.
    #[error("an MTU of {0} is too small: it has to be {SMALLEST} at least")]
    Small(u32),
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

/// The MTU of a network over an underlay of `underlay` bytes; `wanted` is its option `mtu`.
///
/// # Errors
/// [`MtuError`].
pub fn mtu(underlay: u32, carrier: Carrier, wanted: Option<&str>) -> Result<u32, MtuError> {
    let largest = underlay.saturating_sub(cost(carrier));
    let mtu = match wanted {
        None => largest,
        Some(text) => text.parse().map_err(|_| MtuError::NoNumber(text.to_owned()))?,
    };
    match mtu {
        wanted if wanted > largest => Err(MtuError::Large { wanted, largest }),
        small if small < SMALLEST => Err(MtuError::Small(small)),
        mtu => Ok(mtu),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fits() {
        let (v4, v6) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, 1]));
        assert_eq!(mtu(1500, Carrier::Plain(v4), None), Ok(1450));
        assert_eq!(mtu(1500, Carrier::Plain(v6), None), Ok(1430));
        assert_eq!(mtu(1500, Carrier::Encrypted, None), Ok(1370));
        assert_eq!(mtu(9000, Carrier::Plain(v4), Some("1400")), Ok(1400));
        assert_eq!(mtu(1500, Carrier::Local, None), Ok(1500));
    }

    #[test]
    fn what_does_not() {
        let carrier = Carrier::Encrypted;
        assert_eq!(mtu(1500, carrier, Some("1371")), Err(MtuError::Large { wanted: 1371, largest: 1370 }));
        assert_eq!(mtu(1500, carrier, Some("576")), Err(MtuError::Small(576)));
        assert_eq!(mtu(1300, carrier, None), Err(MtuError::Small(1170)));
        assert_eq!(mtu(1500, carrier, Some("much")), Err(MtuError::NoNumber("much".to_owned())));
    }
}
