//! What lies where in an Ethernet frame. Pure: reads bytes from outside and never panics on them.
//!
//! Used by [`crate::segment`] on what a TAP gives, by [`crate::coalesce`] on what peers send, and for the hash of a flow.

/// Bytes of an Ethernet header without VLAN tag.
pub const ETHERNET_HEADER: usize = 14;
pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800;
pub(crate) const ETHERTYPE_ARP: u16 = 0x0806;
pub(crate) const ETHERTYPE_IPV6: u16 = 0x86dd;
pub(crate) const PROTOCOL_TCP: u8 = 6;
pub(crate) const PROTOCOL_UDP: u8 = 17;
pub(crate) const PROTOCOL_ICMPV6: u8 = 58;

/// Why bytes from outside were refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Shorter than a header says or needs.
    #[error("truncated")]
    Truncated,
    /// A length or offset field that cannot be.
    #[error("a length or an offset in it is impossible")]
    Length,
    /// Another version or kind than the field before announced.
    #[error("another kind than announced")]
    Kind,
}

/// What an IP packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A TCP segment with its whole header, which has this many bytes.
    Tcp {
        /// Bytes of the TCP header with options.
        header: usize,
    },
    /// A whole UDP datagram.
    Udp,
    /// Anything else, fragments too.
    Other,
}

/// Where the parts of a frame are, in bytes from its begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// IPv6 instead of IPv4.
    pub v6: bool,
    /// Where the transport header begins.
    pub transport: usize,
    /// What kind it is.
    pub kind: Transport,
    /// Where the payload of the transport begins; equals `transport` for other kinds.
    pub payload: usize,
    /// Where the IP packet ends by its own length; padding may follow.
    pub end: usize,
}

impl Layout {
    /// Source and destination address as they lie in the frame.
    #[inline]
    pub fn addresses<'a>(&self, frame: &'a [u8]) -> &'a [u8] {
        if self.v6 {
            &frame[ETHERNET_HEADER + 8..ETHERNET_HEADER + 40]
        } else {
            &frame[ETHERNET_HEADER + 12..ETHERNET_HEADER + 20]
        }
    }
}

#[inline]
pub(crate) fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(crate) fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

#[inline]
pub(crate) fn put16(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The layout of an IPv4 or IPv6 frame; `None` for any other protocol.
///
/// # Errors
/// [`Malformed`] where the headers contradict the length or themselves.
pub fn parse(frame: &[u8]) -> Result<Option<Layout>, Malformed> {
    if frame.len() < ETHERNET_HEADER {
        return Err(Malformed::Truncated);
    }
    match be16(frame, 12) {
        ETHERTYPE_IPV4 => parse_v4(frame).map(Some),
        ETHERTYPE_IPV6 => parse_v6(frame).map(Some),
        _ => Ok(None),
    }
}

fn parse_v4(frame: &[u8]) -> Result<Layout, Malformed> {
    let ip = &frame[ETHERNET_HEADER..];
    if ip.len() < 20 {
        return Err(Malformed::Truncated);
    }
    if ip[0] >> 4 != 4 {
        return Err(Malformed::Kind);
    }
    let header = usize::from(ip[0] & 0xf) * 4;
    let total = usize::from(be16(ip, 2));
    if header < 20 || total < header {
        return Err(Malformed::Length);
    }
    if total > ip.len() {
        return Err(Malformed::Truncated);
    }
    // More fragments, or not the first one.
    let fragment = be16(ip, 6) & 0x3fff != 0;
    let protocol = if fragment { 0 } else { ip[9] };
    transport(frame, false, ETHERNET_HEADER + header, ETHERNET_HEADER + total, protocol)
}

fn parse_v6(frame: &[u8]) -> Result<Layout, Malformed> {
    let ip = &frame[ETHERNET_HEADER..];
    if ip.len() < 40 {
        return Err(Malformed::Truncated);
    }
    if ip[0] >> 4 != 6 {
        return Err(Malformed::Kind);
    }
    let total = 40 + usize::from(be16(ip, 4));
    if total > ip.len() {
        return Err(Malformed::Truncated);
    }
    // Extension headers are not followed: such packets travel, but one by one.
    transport(frame, true, ETHERNET_HEADER + 40, ETHERNET_HEADER + total, ip[6])
}

fn transport(frame: &[u8], v6: bool, start: usize, end: usize, protocol: u8) -> Result<Layout, Malformed> {
    let length = end - start;
    let (kind, header) = match protocol {
        PROTOCOL_TCP => {
            if length < 20 {
                return Err(Malformed::Truncated);
            }
            let header = usize::from(frame[start + 12] >> 4) * 4;
            if header < 20 || header > length {
                return Err(Malformed::Length);
            }
            (Transport::Tcp { header }, header)
        }
        PROTOCOL_UDP => {
            if length < 8 {
                return Err(Malformed::Truncated);
            }
            (Transport::Udp, 8)
        }
        _ => (Transport::Other, 0),
    };
    Ok(Layout { v6, transport: start, kind, payload: start + header, end })
}

/// A hash of addresses, protocol and ports: the same for all frames of a flow. Fragments hash by their addresses only.
pub fn flow_hash(frame: &[u8], layout: &Layout) -> u32 {
    let mut hash = match layout.kind {
        Transport::Other => 0x9e37_79b9,
        Transport::Tcp { .. } => be32(frame, layout.transport) ^ 6,
        Transport::Udp => be32(frame, layout.transport) ^ 17,
    };
    for word in layout.addresses(frame).chunks_exact(4) {
        hash = (hash ^ be32(word, 0)).wrapping_mul(0x85eb_ca6b);
        hash ^= hash >> 15;
    }
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

#[cfg(test)]
#[path = "frame_test.rs"]
mod tests;
