//! `struct virtio_net_hdr`, which precedes each frame of a TAP with IFF_VNET_HDR (linux/virtio_net.h; VIRTIO 1.2, 5.1.6). Pure.

use crate::frame::Malformed;

/// Its length, little or native endian fields: set by TUNSETVNETHDRSZ.
pub const VIRTIO_HEADER: usize = 10;

const NEEDS_CSUM: u8 = 1;
const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;
/// Flag beside TCP types: the segments have ECN's CWR only once.
const GSO_ECN: u8 = 0x80;

/// How a frame that is longer than a packet is to be cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gso {
    /// It is one packet.
    None,
    /// Into TCP segments over IPv4.
    TcpV4,
    /// Into TCP segments over IPv6.
    TcpV6,
    /// Into UDP datagrams (USO).
    Udp,
}

/// The fields that are used here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VirtioHeader {
    /// Where the checksum's sum begins and where, from there, it is stored: the kernel left it to the receiver.
    pub checksum: Option<(u16, u16)>,
    /// How to cut it.
    pub gso: Gso,
    /// Bytes of payload per packet; 0 without cutting.
    pub gso_size: u16,
    /// Bytes of all headers; a hint of the kernel, which is not relied on.
    pub header_length: u16,
}

impl VirtioHeader {
    /// Of a frame that is complete.
    pub const NONE: VirtioHeader = VirtioHeader { checksum: None, gso: Gso::None, gso_size: 0, header_length: 0 };

    /// Reads the header at the begin of `bytes`.
    ///
    /// # Errors
    /// [`Malformed`] where it is too short, or of a kind that was never offered to the kernel.
    pub fn parse(bytes: &[u8]) -> Result<VirtioHeader, Malformed> {
        let Some(bytes) = bytes.first_chunk::<VIRTIO_HEADER>() else { return Err(Malformed::Truncated) };
        let field = |at: usize| u16::from_ne_bytes([bytes[at], bytes[at + 1]]);
        let gso = match bytes[1] & !GSO_ECN {
            GSO_NONE => Gso::None,
            GSO_TCPV4 => Gso::TcpV4,
            GSO_TCPV6 => Gso::TcpV6,
            GSO_UDP_L4 => Gso::Udp,
            _ => return Err(Malformed::Kind),
        };
        let checksum = (bytes[0] & NEEDS_CSUM != 0).then(|| (field(6), field(8)));
        if gso != Gso::None && field(4) == 0 {
            return Err(Malformed::Length);
        }
        Ok(VirtioHeader { checksum, gso, gso_size: field(4), header_length: field(2) })
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; VIRTIO_HEADER] {
        let mut bytes = [0; VIRTIO_HEADER];
        let (start, offset) = self.checksum.unwrap_or_default();
        bytes[0] = if self.checksum.is_some() { NEEDS_CSUM } else { 0 };
        bytes[1] = match self.gso {
            Gso::None => GSO_NONE,
            Gso::TcpV4 => GSO_TCPV4,
            Gso::TcpV6 => GSO_TCPV6,
            Gso::Udp => GSO_UDP_L4,
        };
        for (at, value) in [(2, self.header_length), (4, self.gso_size), (6, start), (8, offset)] {
            bytes[at..at + 2].copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_bytes_parse_or_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..16)) {
            if let Ok(header) = VirtioHeader::parse(&bytes) {
                prop_assert_eq!(VirtioHeader::parse(&header.to_bytes()), Ok(header));
            }
        }
    }
}
