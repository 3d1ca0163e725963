//! The headers that a frame gets inside the tunnel: IP and UDP between fabric addresses, and VXLAN (RFC 7348). Pure.
//!
//! [`crate::transmit`] writes them, [`crate::receive`] checks and strips them. On the wire this is what the kernel's VXLAN over
//! a WireGuard interface emits.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::checksum::{Sum, pseudo_header};
use crate::frame::{PROTOCOL_UDP, be16, be32, put16};

const VXLAN_HEADER: usize = 8;
const UDP_HEADER: usize = 8;
const HOPS: u8 = 64;
/// The I flag: the VNI is valid.
const FLAG_VNI: u8 = 0x08;
/// The largest VNI: 24 bits.
pub const MAX_VNI: u32 = 0xff_ffff;
/// Room for the headers over IPv6.
pub const MAX_OUTER: usize = 40 + UDP_HEADER + VXLAN_HEADER;

/// The headers to one peer: all that does not depend on the frame.
#[derive(Debug, Clone)]
pub struct Outer {
    /// Filled but for lengths, checksums, source port and VNI.
    template: [u8; MAX_OUTER],
    length: usize,
}

impl Outer {
    /// From our fabric address to the peer's. `None` where one is IPv4 and the other IPv6.
    pub fn new(source: IpAddr, destination: IpAddr, port: u16) -> Option<Outer> {
        let mut template = [0; MAX_OUTER];
        let ip = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                template[0] = 0x45;
                // Don't fragment: the tunnel carries whole packets only.
                template[6] = 0x40;
                template[8] = HOPS;
                template[9] = PROTOCOL_UDP;
                template[12..16].copy_from_slice(&source.octets());
                template[16..20].copy_from_slice(&destination.octets());
                20
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                template[0] = 0x60;
                template[6] = PROTOCOL_UDP;
                template[7] = HOPS;
                template[8..24].copy_from_slice(&source.octets());
                template[24..40].copy_from_slice(&destination.octets());
                40
            }
            _ => return None,
        };
        put16(&mut template, ip + 2, port);
        template[ip + UDP_HEADER] = FLAG_VNI;
        Some(Outer { template, length: ip + UDP_HEADER + VXLAN_HEADER })
    }

    /// Bytes before the frame: 36 or 56.
    #[inline]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Writes the headers at the begin of `packet`, whose frame is already there after [`Outer::length`] bytes.
    #[inline]
    pub fn write(&self, packet: &mut [u8], vni: u32, hash: u32) {
        let ip = self.length - UDP_HEADER - VXLAN_HEADER;
        let total = packet.len();
        packet[..self.length].copy_from_slice(&self.template[..self.length]);
        // From the dynamic ports, by flow, so that hosts between can spread flows (RFC 7348, section 5).
        put16(packet, ip, 0xc000 | (hash & 0x3fff) as u16);
        put16(packet, ip + 4, (total - ip) as u16);
        let at = ip + UDP_HEADER + 4;
        packet[at..at + 3].copy_from_slice(&vni.to_be_bytes()[1..]);
        if ip == 20 {
            put16(packet, 2, total as u16);
            let sum = Sum::default().bytes(&packet[..20]).checksum();
            put16(packet, 10, sum);
        } else {
            put16(packet, 4, (total - 40) as u16);
            // UDP over IPv6 must have a checksum, and the kernel's VXLAN insists on it by default (RFC 8200, section 8.1).
            let sum = pseudo_header(&packet[8..40], PROTOCOL_UDP, total - ip).bytes(&packet[ip..]).checksum_nonzero();
            put16(packet, ip + 6, sum);
        }
    }
}

/// What a packet out of the tunnel is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Who says to have sent it.
    pub source: IpAddr,
    /// Where the frame begins and ends in the packet.
    pub frame: (usize, usize),
    /// The network.
    pub vni: u32,
}

/// Why a packet out of the tunnel is not one of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotVxlan {
    /// Truncated, a fragment, or with headers that contradict themselves.
    #[error("malformed")]
    Malformed,
    /// To another address than ours.
    #[error("to another address")]
    Destination,
    /// Another protocol or port.
    #[error("another protocol or port")]
    Port,
}

/// Reads the headers of a packet as it came out of the tunnel; padding after the packet is ignored.
///
/// # Errors
/// [`NotVxlan`], with the reason to count.
#[inline]
pub fn parse(packet: &[u8], ours: &[IpAddr], port: u16) -> Result<Inner, NotVxlan> {
    if packet.len() < 20 {
        return Err(NotVxlan::Malformed);
    }
    let (source, destination, ip, end, protocol): (IpAddr, IpAddr, usize, usize, u8) = match packet[0] >> 4 {
        4 => {
            let ip = usize::from(packet[0] & 0xf) * 4;
            if ip < 20 || be16(packet, 6) & 0x3fff != 0 {
                return Err(NotVxlan::Malformed);
            }
            let address = |at: usize| Ipv4Addr::from(be32(packet, at)).into();
            (address(12), address(16), ip, usize::from(be16(packet, 2)), packet[9])
        }
        6 => {
            let Some(addresses) = packet.get(8..40).and_then(|addresses| addresses.first_chunk::<32>()) else {
                return Err(NotVxlan::Malformed);
            };
            let address = |at: usize| {
                let mut octets = [0; 16];
                octets.copy_from_slice(&addresses[at..at + 16]);
                Ipv6Addr::from(octets).into()
            };
            (address(0), address(16), 40, 40 + usize::from(be16(packet, 4)), packet[6])
        }
        _ => return Err(NotVxlan::Malformed),
    };
    if end > packet.len() || end < ip + UDP_HEADER + VXLAN_HEADER {
        return Err(NotVxlan::Malformed);
    }
    if protocol != PROTOCOL_UDP || be16(packet, ip + 2) != port {
        return Err(NotVxlan::Port);
    }
    if !ours.contains(&destination) {
        return Err(NotVxlan::Destination);
    }
    let udp_end = ip + usize::from(be16(packet, ip + 4));
    if udp_end > end || udp_end < ip + UDP_HEADER + VXLAN_HEADER || packet[ip + UDP_HEADER] & FLAG_VNI == 0 {
        return Err(NotVxlan::Malformed);
    }
    let vni = be32(packet, ip + UDP_HEADER + 4) >> 8;
    Ok(Inner { source, frame: (ip + UDP_HEADER + VXLAN_HEADER, udp_end), vni })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn addresses(v6: bool) -> (IpAddr, IpAddr) {
        if v6 {
            ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap())
        } else {
            ("10.255.0.1".parse().unwrap(), "10.255.0.2".parse().unwrap())
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frame in prop::collection::vec(any::<u8>(), 0..2000), vni in 0..=MAX_VNI, hash: u32, v6: bool) {
            let (a, b) = addresses(v6);
            let outer = Outer::new(a, b, 4790).unwrap();
            let mut packet = vec![0; outer.length()];
            packet.extend(&frame);
            outer.write(&mut packet, vni, hash);
            if v6 {
                let sum = pseudo_header(&packet[8..40], PROTOCOL_UDP, packet.len() - 40).bytes(&packet[40..]);
                prop_assert_eq!(sum.folded(), 0xffff);
            } else {
                prop_assert_eq!(Sum::default().bytes(&packet[..20]).folded(), 0xffff);
            }
            packet.extend([0; 5]); // WireGuard's padding
            let inner = parse(&packet, &[b], 4790).unwrap();
            prop_assert_eq!((inner.source, inner.vni), (a, vni));
            prop_assert_eq!(&packet[inner.frame.0..inner.frame.1], &frame[..]);
            prop_assert_eq!(parse(&packet, &[a], 4790), Err(NotVxlan::Destination));
            prop_assert_eq!(parse(&packet, &[b], 4789), Err(NotVxlan::Port));
        }

        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..120), first in prop::sample::select(vec![0x45u8, 0x4f, 0x60])) {
            let mut bytes = bytes;
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let (a, b) = addresses(false);
            if let Ok(inner) = parse(&bytes, &[a, b], 0) {
                prop_assert!(inner.frame.0 <= inner.frame.1 && inner.frame.1 <= bytes.len());
            }
        }
    }
}
