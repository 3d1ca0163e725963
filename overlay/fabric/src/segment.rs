//! Cuts a frame as the TAP gives it (up to 64 KiB, its checksum not computed) into the packets that travel. Pure.
//!
//! Called by [`crate::transmit`] for each frame; each packet is written straight to the place where it is sealed. Does what the
//! kernel's tcp_gso_segment and __udp_gso_segment do.

use crate::checksum::{Sum, pseudo_header};
use crate::frame::{
    ETHERNET_HEADER, Layout, Malformed, PROTOCOL_TCP, PROTOCOL_UDP, Transport, be16, be32, parse, put16,
};
use crate::virtio::{Gso, VirtioHeader};

const TCP_FIN: u8 = 0x01;
const TCP_PSH: u8 = 0x08;
const TCP_CWR: u8 = 0x80;

/// How one frame is cut.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// `None` for protocols other than IP.
    pub layout: Option<Layout>,
    checksum: Option<(usize, usize)>,
    cut: Option<Cut>,
    length: usize,
}

#[derive(Debug, Clone, Copy)]
struct Cut {
    layout: Layout,
    tcp: bool,
    size: usize,
    count: usize,
}

/// Decides how to cut `frame`.
///
/// # Errors
/// [`Malformed`] where the header does not fit the frame.
pub fn plan(header: &VirtioHeader, frame: &[u8]) -> Result<Plan, Malformed> {
    let layout = parse(frame)?;
    let checksum = match header.checksum {
        Some((start, offset)) => {
            let (start, field) = (usize::from(start), usize::from(start) + usize::from(offset));
            if field + 2 > frame.len() || start < ETHERNET_HEADER {
                return Err(Malformed::Length);
            }
            Some((start, field))
        }
        None => None,
    };
    let whole = Plan { layout, checksum, cut: None, length: frame.len() };
    if header.gso == Gso::None {
        return Ok(whole);
    }
    let Some(layout) = layout else { return Err(Malformed::Kind) };
    let tcp = match (header.gso, layout.kind, layout.v6) {
        (Gso::TcpV4, Transport::Tcp { .. }, false) | (Gso::TcpV6, Transport::Tcp { .. }, true) => true,
        (Gso::Udp, Transport::Udp, _) => false,
        _ => return Err(Malformed::Kind),
    };
    let size = usize::from(header.gso_size);
    let count = (layout.end - layout.payload).div_ceil(size).max(1);
    Ok(Plan { cut: Some(Cut { layout, tcp, size, count }), ..whole })
}

impl Plan {
    /// How many packets it becomes.
    #[inline]
    pub fn count(&self) -> usize {
        self.cut.map_or(1, |cut| cut.count)
    }

    /// The length of packet `index` with its Ethernet header.
    #[inline]
    pub fn length(&self, index: usize) -> usize {
        match self.cut {
            None => self.length,
            Some(cut) => cut.layout.payload + cut.piece(index).len(),
        }
    }

    /// Writes packet `index` into `out`, which has [`Plan::length`] bytes. `frame` is what the plan was made from.
    #[inline]
    pub fn write(&self, frame: &[u8], index: usize, out: &mut [u8]) {
        match self.cut {
            None => {
                out.copy_from_slice(frame);
                if let Some((start, field)) = self.checksum {
                    // The field holds the pseudo-header's sum.
                    let sum = Sum::default().bytes(&out[start..]).checksum_nonzero();
                    put16(out, field, sum);
                }
            }
            Some(cut) => cut.write(frame, index, out),
        }
    }
}

impl Cut {
    #[inline]
    fn piece(&self, index: usize) -> std::ops::Range<usize> {
        let start = (self.layout.payload + index * self.size).min(self.layout.end);
        start..(start + self.size).min(self.layout.end)
    }

    fn write(&self, frame: &[u8], index: usize, out: &mut [u8]) {
        let Layout { v6, transport, payload, .. } = self.layout;
        out[..payload].copy_from_slice(&frame[..payload]);
        out[payload..].copy_from_slice(&frame[self.piece(index)]);
        let length = out.len() - transport;
        if v6 {
            put16(out, ETHERNET_HEADER + 4, (out.len() - ETHERNET_HEADER - 40) as u16);
        } else {
            let id = be16(frame, ETHERNET_HEADER + 4).wrapping_add(index as u16);
            put16(out, ETHERNET_HEADER + 2, (out.len() - ETHERNET_HEADER) as u16);
            put16(out, ETHERNET_HEADER + 4, id);
            put16(out, ETHERNET_HEADER + 10, 0);
            let sum = Sum::default().bytes(&out[ETHERNET_HEADER..transport]).checksum();
            put16(out, ETHERNET_HEADER + 10, sum);
        }
        let (protocol, field) = if self.tcp {
            let sequence = be32(frame, transport + 4).wrapping_add((index * self.size) as u32);
            out[transport + 4..transport + 8].copy_from_slice(&sequence.to_be_bytes());
            if index + 1 < self.count {
                out[transport + 13] &= !(TCP_FIN | TCP_PSH);
            }
            if index > 0 {
                out[transport + 13] &= !TCP_CWR;
            }
            (PROTOCOL_TCP, transport + 16)
        } else {
            put16(out, transport + 4, length as u16);
            (PROTOCOL_UDP, transport + 6)
        };
        put16(out, field, 0);
        let pseudo = pseudo_header(self.layout.addresses(frame), protocol, length);
        // The transport header has an even length, so header and payload may be summed apart.
        let sum = pseudo.bytes(&out[transport..payload]).bytes(&out[payload..]).checksum_nonzero();
        put16(out, field, sum);
    }
}

#[cfg(test)]
#[path = "segment_test.rs"]
pub(crate) mod tests;
