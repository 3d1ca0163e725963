//! Puts consecutive packets of a flow together again, so that the kernel is given few large frames instead of many small ones
//! (what GRO does in the kernel). Pure: keeps where payloads lie, not the payloads.
//!
//! [`crate::receive`] gives it each frame that came out of the tunnel and writes what it emits. Frames of one flow leave in the
//! order in which they came; checksums are verified before frames are put together, as the result carries a new one.

use std::ops::Range;

use crate::checksum::{Sum, pseudo_header};
use crate::frame::{
    ETHERNET_HEADER, Layout, PROTOCOL_TCP, PROTOCOL_UDP, Transport, be16, be32, flow_hash, parse, put16,
};
use crate::virtio::{Gso, VirtioHeader};

/// Flows that are put together at the same time; batches hold few.
const RUNS: usize = 16;
/// Ethernet, IPv6, the longest TCP header.
const MAX_HEADERS: usize = ETHERNET_HEADER + 40 + 60;
/// The longest IP packet.
const MAX_PACKET: usize = 65535;
/// Below the kernel's limits: IOV_MAX is 1024; UDP_MAX_SEGMENTS was 64 for long.
const MAX_TCP_PIECES: usize = 512;
const MAX_UDP_PIECES: usize = 64;
const TCP_ACK: u8 = 0x10;
const TCP_PSH: u8 = 0x08;
const DONT_FRAGMENT: u8 = 0x40;

/// A frame to be written: its headers, and where in the buffer its parts lie.
#[derive(Debug)]
pub struct Output<'a> {
    /// The port it is for, as it was pushed.
    pub port: usize,
    /// What precedes it.
    pub virtio: VirtioHeader,
    /// Its headers; empty where the first piece is the whole frame.
    pub headers: &'a [u8],
    /// The rest, in order.
    pub pieces: &'a [Range<usize>],
}

#[derive(Debug)]
struct Run {
    port: usize,
    hash: u32,
    /// Of the first frame, as it is in the buffer.
    first: Range<usize>,
    layout: Layout,
    headers: [u8; MAX_HEADERS],
    /// Payload of each packet but the last.
    size: usize,
    payload: usize,
    pieces: Vec<Range<usize>>,
    verified: bool,
    /// A shorter packet or one with PSH ends it.
    closed: bool,
}

/// The runs of a batch.
#[derive(Debug)]
pub struct Coalescer {
    runs: Vec<Run>,
    /// How many of them are in use, at the begin.
    used: usize,
    /// Whether UDP datagrams may be put together, too.
    pub udp: bool,
}

impl Coalescer {
    /// Allocates all that it ever needs.
    pub fn new(udp: bool) -> Coalescer {
        let empty = || Run {
            port: 0,
            hash: 0,
            first: 0..0,
            layout: Layout { v6: false, transport: 0, kind: Transport::Other, payload: 0, end: 0 },
            headers: [0; MAX_HEADERS],
            size: 0,
            payload: 0,
            pieces: Vec::with_capacity(MAX_TCP_PIECES),
            verified: false,
            closed: false,
        };
        Coalescer { runs: (0..RUNS).map(|_| empty()).collect(), used: 0, udp }
    }

    /// Takes the frame at `place` in `buffer`, for `port`. What lies there must not change before [`Coalescer::flush`].
    pub fn push(&mut self, buffer: &[u8], place: Range<usize>, port: usize, emit: &mut impl FnMut(&[u8], Output<'_>)) {
        let frame = &buffer[place.clone()];
        let Ok(Some(layout)) = parse(frame) else { return alone(buffer, place, port, emit) };
        if layout.kind == Transport::Other {
            return alone(buffer, place, port, emit);
        }
        let hash = flow_hash(frame, &layout);
        let run = self.runs[..self.used].iter().position(|run| run.hash == hash && run.port == port);
        let mergeable = self.mergeable(frame, &layout);
        if let Some(run) = run {
            if mergeable && self.runs[run].append(buffer, &place, &layout) {
                return;
            }
            self.runs[run].emit(buffer, emit);
            self.used -= 1;
            self.runs.swap(run, self.used);
        }
        if !mergeable {
            return alone(buffer, place, port, emit);
        }
        if self.used == RUNS {
            self.flush(buffer, emit);
        }
        self.runs[self.used].start(frame, place, port, hash, layout);
        self.used += 1;
    }

    /// Emits all that is kept.
    pub fn flush(&mut self, buffer: &[u8], emit: &mut impl FnMut(&[u8], Output<'_>)) {
        for run in &mut self.runs[..self.used] {
            run.emit(buffer, emit);
        }
        self.used = 0;
    }

    fn mergeable(&self, frame: &[u8], layout: &Layout) -> bool {
        if layout.end == layout.payload || (!layout.v6 && layout.transport != ETHERNET_HEADER + 20) {
            return false;
        }
        match layout.kind {
            Transport::Tcp { .. } => frame[layout.transport + 13] & !TCP_PSH == TCP_ACK,
            Transport::Udp => {
                let length = usize::from(be16(frame, layout.transport + 4));
                self.udp && be16(frame, layout.transport + 6) != 0 && length == layout.end - layout.transport
            }
            Transport::Other => false,
        }
    }
}

fn alone(buffer: &[u8], place: Range<usize>, port: usize, emit: &mut impl FnMut(&[u8], Output<'_>)) {
    emit(buffer, Output { port, virtio: VirtioHeader::NONE, headers: &[], pieces: &[place] });
}

/// Whether the transport's checksum is right.
fn checksum_holds(frame: &[u8], layout: &Layout) -> bool {
    let protocol = if layout.kind == Transport::Udp { PROTOCOL_UDP } else { PROTOCOL_TCP };
    let pseudo = pseudo_header(layout.addresses(frame), protocol, layout.end - layout.transport);
    pseudo.bytes(&frame[layout.transport..layout.end]).folded() == 0xffff
}

impl Run {
    fn start(&mut self, frame: &[u8], place: Range<usize>, port: usize, hash: u32, layout: Layout) {
        let payload = place.start + layout.payload..place.start + layout.end;
        self.headers[..layout.payload].copy_from_slice(&frame[..layout.payload]);
        self.size = payload.len();
        self.payload = payload.len();
        self.closed = matches!(layout.kind, Transport::Tcp { .. }) && frame[layout.transport + 13] & TCP_PSH != 0;
        self.pieces.clear();
        self.pieces.push(payload);
        self.verified = false;
        (self.port, self.hash, self.layout, self.first) = (port, hash, layout, place);
    }

    /// Adds the frame at `place`, if it continues this run. False leaves the run as it was.
    fn append(&mut self, buffer: &[u8], place: &Range<usize>, layout: &Layout) -> bool {
        let frame = &buffer[place.clone()];
        let length = layout.end - layout.payload;
        let udp = layout.kind == Transport::Udp;
        let most = if udp { MAX_UDP_PIECES } else { MAX_TCP_PIECES };
        if self.closed
            || length > self.size
            || self.pieces.len() == most
            || self.layout.payload + self.payload + length - ETHERNET_HEADER > MAX_PACKET
            || !self.continues(frame, layout)
        {
            return false;
        }
        if !self.verified {
            if !checksum_holds(&buffer[self.first.clone()], &self.layout) {
                return false;
            }
            self.verified = true;
        }
        if !checksum_holds(frame, layout) {
            return false;
        }
        if !udp {
            let push = frame[layout.transport + 13] & TCP_PSH;
            self.headers[layout.transport + 13] |= push;
            self.closed = push != 0;
        }
        self.closed |= length < self.size;
        self.payload += length;
        self.pieces.push(place.start + layout.payload..place.start + layout.end);
        true
    }

    /// Whether the headers of `frame` are those of the next packet, as tcp_gro_receive and inet_gro_receive have it.
    fn continues(&self, frame: &[u8], layout: &Layout) -> bool {
        let ours = &self.headers[..self.layout.payload];
        if layout.v6 != self.layout.v6
            || layout.kind != self.layout.kind
            || layout.transport != self.layout.transport
            || frame[..ETHERNET_HEADER] != ours[..ETHERNET_HEADER]
        {
            return false;
        }
        let same = |range: Range<usize>| frame[range.clone()] == ours[range];
        let ip_same = if layout.v6 {
            same(14..18) && same(20..54)
        } else {
            // With DF set the identification means nothing (RFC 6864); without it, it counts up.
            let id = be16(ours, 18).wrapping_add(self.pieces.len() as u16);
            same(14..16) && same(20..24) && same(26..34) && (frame[20] & DONT_FRAGMENT != 0 || be16(frame, 18) == id)
        };
        let transport = layout.transport;
        ip_same
            && same(transport..transport + 4)
            && match layout.kind {
                Transport::Tcp { header } => {
                    be32(frame, transport + 4) == be32(ours, transport + 4).wrapping_add(self.payload as u32)
                        && same(transport + 8..transport + 13)
                        && same(transport + 14..transport + 16)
                        && same(transport + 18..transport + header)
                }
                Transport::Udp => true,
                Transport::Other => false,
            }
    }

    fn emit(&mut self, buffer: &[u8], emit: &mut impl FnMut(&[u8], Output<'_>)) {
        if self.pieces.len() == 1 {
            return alone(buffer, self.first.clone(), self.port, emit);
        }
        let Layout { v6, transport, payload, kind, .. } = self.layout;
        let headers = &mut self.headers[..payload];
        let length = payload - transport + self.payload;
        if v6 {
            put16(headers, ETHERNET_HEADER + 4, length as u16);
        } else {
            put16(headers, ETHERNET_HEADER + 2, (transport - ETHERNET_HEADER + length) as u16);
            put16(headers, ETHERNET_HEADER + 10, 0);
            let sum = Sum::default().bytes(&headers[ETHERNET_HEADER..transport]).checksum();
            put16(headers, ETHERNET_HEADER + 10, sum);
        }
        let (protocol, field, gso) = match kind {
            Transport::Udp => (PROTOCOL_UDP, 6u16, Gso::Udp),
            _ => (PROTOCOL_TCP, 16, if v6 { Gso::TcpV6 } else { Gso::TcpV4 }),
        };
        if kind == Transport::Udp {
            put16(headers, transport + 4, length as u16);
        }
        let pseudo = pseudo_header(self.layout.addresses(headers), protocol, length).folded();
        put16(headers, transport + usize::from(field), pseudo);
        let virtio = VirtioHeader {
            checksum: Some((transport as u16, field)),
            gso,
            gso_size: self.size as u16,
            header_length: payload as u16,
        };
        emit(buffer, Output { port: self.port, virtio, headers, pieces: &self.pieces });
    }
}

#[cfg(test)]
#[path = "coalesce_test.rs"]
mod tests;
