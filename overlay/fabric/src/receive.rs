//! The threads that receive from peers, open packets, check them, and give frames to TAPs.
//!
//! One thread per socket. The kernel gives all packets of a sender to one of the sockets, so the packets of a flow stay in
//! order. The loop allocates nothing; it takes a version of the tables for each call that receives.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use skep_noise::{DATA_OVERHEAD_SZ, Session, WireGuardError};

use crate::clock::now;
use crate::coalesce::{Coalescer, Output};
use crate::core::Core;
use crate::peer::{Slot, Table};
use crate::port::Port;
use crate::socket::{Inbox, Message};
use crate::statistics::DropReason;
use crate::transmit::{FEW, Transmitter};
use crate::vxlan::{self, NotVxlan};

/// The first byte of a data message.
const DATA: u8 = 4;
/// Parts of one write: virtio header, headers, and the pieces of the longest frame.
const MAX_PARTS: usize = 600;

/// What came from one session since the tables were taken.
struct Current {
    index: u32,
    slot: Slot,
    session: Arc<Session>,
    packets: u64,
    bytes: u64,
    data: bool,
    from: SocketAddr,
}

/// Where frames go: the port that was written to last, and counters.
struct Writer<'a> {
    core: &'a Core,
    thread: usize,
    ports: Arc<HashMap<u32, Arc<Port>>>,
}

/// Runs until the socket is stopped.
pub(crate) fn run(core: &Core, socket: &OwnedFd, thread: usize) {
    let mut inbox = Inbox::new();
    let mut coalescer = Coalescer::new(false);
    let mut parts = Vec::with_capacity(MAX_PARTS);
    let mut transmitter = Transmitter::new(core, thread);
    while !core.stopping.load(Relaxed) {
        let count = match inbox.receive(socket) {
            Ok(count) => count,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            // What an ICMP message reported about something that was sent.
            Err(error) => {
                tracing::debug!(%error, "receiving");
                continue;
            }
        };
        let table = core.table.load();
        let writer = Writer { core, thread, ports: core.ports.load() };
        let mut current = None;
        let now = now();
        let (mut frames, mut network) = (0, None);
        for message in 0..count {
            let Some(Message { from, place, size }) = inbox.message(message) else { continue };
            let mut start = place.start;
            while start < place.end {
                let datagram = start..(start + size).min(place.end);
                start = datagram.end;
                if inbox.bytes[datagram.start] != DATA {
                    core.handshake(&inbox.bytes[datagram], from, &table);
                    continue;
                }
                let opened = open(core, &table, &mut current, &mut inbox.bytes, datagram, from, now);
                if let Some((vni, frame)) = opened {
                    (frames, network) = (frames + 1, Some(vni));
                    writer.push(&mut coalescer, &inbox.bytes, vni, frame, &mut parts);
                }
            }
        }
        coalescer.flush(&inbox.bytes, &mut |buffer, output| writer.write(buffer, &output, &mut parts));
        settle(core, &mut current, now);
        if frames <= FEW
            && let Some(port) = network.and_then(|vni| writer.ports.get(&vni))
        {
            transmitter.answers(port, port.queue_of(thread), &table);
        }
    }
}

/// Opens a data message and checks what is in it; the network and the frame's place, if all is right.
#[inline]
fn open(
    core: &Core,
    table: &Table,
    current: &mut Option<Current>,
    bytes: &mut [u8],
    place: Range<usize>,
    from: SocketAddr,
    now: Duration,
) -> Option<(u32, Range<usize>)> {
    let message = &mut bytes[place.clone()];
    let Some(index) =
        message.get(4..8).and_then(|index| index.first_chunk()).filter(|_| message.len() >= DATA_OVERHEAD_SZ)
    else {
        core.drop(None, DropReason::Malformed);
        return None;
    };
    let index = u32::from_le_bytes(*index);
    if current.as_ref().is_none_or(|current| current.index != index) {
        settle(core, current, now);
        *current = table.slot(index).and_then(|slot| {
            let session = slot.tunnel.receiving(index)?;
            Some(Current { index, slot: slot.clone(), session, packets: 0, bytes: 0, data: false, from })
        });
    }
    let Some(current) = current else {
        core.drop(None, DropReason::UnknownSession);
        return None;
    };
    let packet = match current.session.open_in_place(message) {
        Ok(packet) => packet,
        Err(error) => {
            let reason = match error {
                WireGuardError::InvalidAeadTag => DropReason::Forged,
                WireGuardError::InvalidCounter | WireGuardError::DuplicateCounter => DropReason::Replayed,
                _ => DropReason::UnknownSession,
            };
            core.drop(Some(&current.slot.peer), reason);
            return None;
        }
    };
    current.packets += 1;
    current.bytes += message.len() as u64;
    current.from = from;
    if packet.is_empty() {
        return None; // A keepalive.
    }
    current.data = true;
    let peer = &current.slot.peer;
    let inner = match vxlan::parse(&message[packet.clone()], &core.config.fabric_addresses, core.config.vxlan_port) {
        Ok(inner) if inner.source == peer.fabric_address => inner,
        refused => {
            let reason = match refused {
                Ok(_) => DropReason::WrongSource,
                Err(NotVxlan::Malformed) => DropReason::Malformed,
                Err(NotVxlan::Destination) => DropReason::WrongDestination,
                Err(NotVxlan::Port) => DropReason::WrongPort,
            };
            core.drop(Some(peer), reason);
            return None;
        }
    };
    let start = place.start + packet.start;
    Some((inner.vni, start + inner.frame.0..start + inner.frame.1))
}

/// Tells the peer what came from it: where it is, that it lives, which session it uses.
fn settle(core: &Core, current: &mut Option<Current>, now: Duration) {
    let Some(current) = current.take().filter(|current| current.packets > 0) else { return };
    let Slot { tunnel, peer } = &current.slot;
    peer.received.add(current.packets, current.bytes);
    peer.set_endpoint(current.from);
    tunnel.activity.received(now, current.data);
    if tunnel.current_index.load(Relaxed) != current.index {
        core.confirm(&current.slot, current.index);
    }
}

impl Writer<'_> {
    #[inline]
    fn push(
        &self,
        coalescer: &mut Coalescer,
        buffer: &[u8],
        vni: u32,
        frame: Range<usize>,
        parts: &mut Vec<libc::iovec>,
    ) {
        let Some(port) = self.ports.get(&vni) else { return self.core.drop(None, DropReason::UnknownNetwork) };
        coalescer.udp = port.uso;
        coalescer.push(buffer, frame, vni as usize, &mut |buffer, output| self.write(buffer, &output, parts));
    }

    fn write(&self, buffer: &[u8], output: &Output<'_>, parts: &mut Vec<libc::iovec>) {
        let Some(port) = self.ports.get(&(output.port as u32)) else { return };
        let virtio = output.virtio.to_bytes();
        let part = |bytes: &[u8]| libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        parts.clear();
        parts.push(part(&virtio));
        if !output.headers.is_empty() {
            parts.push(part(output.headers));
        }
        parts.extend(output.pieces.iter().map(|piece| part(&buffer[piece.clone()])));
        if port.write(port.queue_of(self.thread), parts).is_err() {
            self.core.drop(None, DropReason::TapRefused);
        }
        parts.clear();
    }
}
