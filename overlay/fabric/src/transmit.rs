//! The threads that take frames from TAPs, seal them and send them.
//!
//! The kernel puts the frames of a flow into one TAP queue, and who reads a queue sends what it read before the next one's
//! turn: so they stay in order. Each queue belongs to one thread; but one that receives looks for the kernel's answer to
//! what it wrote itself ([`Transmitter::answers`]), as waking another thread takes longer than all else on the way. The
//! loop allocates nothing; it takes a version of the tables for each time it wakes.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};
use skep_noise::{AEAD_SIZE, DATA_OFFSET};

use crate::clock::now;
use crate::core::Core;
use crate::frame::{ETHERNET_HEADER, flow_hash};
use crate::peer::{Peer, Table};
use crate::port::{ForwardTable, Port};
use crate::rcu::{Current, lock};
use crate::segment::{self, Plan};
use crate::socket::Batch;
use crate::statistics::DropReason;
use crate::virtio::{VIRTIO_HEADER, VirtioHeader};
use crate::{Mac, neighbour};

/// The longest frame with its virtio header: 64 KiB of IP packet.
const FRAME_BUFFER: usize = VIRTIO_HEADER + 65_536 + 64;
/// Room for several large frames, sealed.
const ARENA: usize = 512 << 10;
/// A batch with this many bytes is sent, so that the other end need not wait for more.
const SEND_AT: usize = 60 << 10;
/// Frames that are taken from a queue before the next queue has its turn.
const BURST: usize = 64;
/// Frames that one who receives looks for: more are no answers to the few that it wrote.
pub(crate) const FEW: usize = 4;
/// Bytes of all of them: acknowledgements, echoes. Large ones are sealed beside what is received, by another thread.
const SHORT: usize = 4096;
/// The event that stops a thread; queues count from 0.
pub(crate) const STOP: u64 = u64::MAX;

/// A queue of a port.
#[derive(Clone)]
pub(crate) struct Queue {
    pub(crate) port: Arc<Port>,
    pub(crate) index: usize,
}

/// The queues of one thread, as its events name them.
pub(crate) struct Queues {
    pub(crate) epoll: Epoll,
    pub(crate) by_event: Current<HashMap<u64, Queue>>,
}

/// One thread's state.
pub(crate) struct Transmitter<'a> {
    core: &'a Core,
    thread: usize,
    batch: Batch,
    merge: bool,
    frame: Vec<u8>,
}

/// What was read from a queue.
#[derive(Default)]
struct Taken {
    frames: usize,
    bytes: usize,
    /// The device is gone.
    gone: bool,
}

impl Taken {
    fn is_short(&self) -> bool {
        self.frames <= FEW && self.bytes <= SHORT
    }
}

/// Runs until the device stops. What the kernel refuses to wait for ends the thread with a message.
pub(crate) fn run(core: &Core, queues: &Queues, thread: usize) {
    let mut transmitter = Transmitter::new(core, thread);
    let mut events = [EpollEvent::empty(); 32];
    loop {
        let ready = match queues.epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(ready) => ready,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return tracing::error!(%error, "a thread that sends cannot wait for its queues"),
        };
        let (table, by_event) = (core.table.load(), queues.by_event.load());
        for event in &events[..ready] {
            if event.data() == STOP {
                return;
            }
            // Unknown: it was detached meanwhile.
            if let Some(queue) = by_event.get(&event.data())
                && !transmitter.drain(queue, &table)
            {
                tracing::warn!(vni = queue.port.vni, "the TAP of a network is gone");
                // It would be ready for good. Detaching it later finds nothing to do.
                let _ = queues.epoll.delete(&queue.port.queues[queue.index]);
            }
        }
    }
}

impl<'a> Transmitter<'a> {
    pub(crate) fn new(core: &'a Core, thread: usize) -> Self {
        let merge = core.udp_segment.load(Relaxed);
        Self { core, thread, batch: Batch::new(ARENA), merge, frame: vec![0; FRAME_BUFFER] }
    }
}

impl Transmitter<'_> {
    /// Takes and sends what is there. False where the device is gone.
    fn drain(&mut self, queue: &Queue, table: &Table) -> bool {
        let turn = &queue.port.turns[queue.index];
        let _turn = lock(&turn.taken);
        let taken = self.take_up_to(BURST, queue, table);
        if taken.frames > 0 {
            turn.answers.store(taken.is_short(), Relaxed);
        }
        !taken.gone
    }

    /// Takes and sends what the kernel answered at once to what this thread wrote to the queue. Looks only where that came
    /// lately, and nobody else is at it.
    pub(crate) fn answers(&mut self, port: &Arc<Port>, index: usize, table: &Table) {
        let turn = &port.turns[index];
        if !turn.answers.load(Relaxed) {
            return;
        }
        let Ok(_turn) = turn.taken.try_lock() else { return };
        let taken = self.take_up_to(FEW, &Queue { port: Arc::clone(port), index }, table);
        turn.answers.store(taken.frames > 0 && taken.is_short(), Relaxed);
    }

    fn take_up_to(&mut self, frames: usize, queue: &Queue, table: &Table) -> Taken {
        let forward = queue.port.forward.load();
        let mut buffer = std::mem::take(&mut self.frame);
        let mut taken = Taken::default();
        while taken.frames < frames {
            match read(&queue.port.queues[queue.index], &mut buffer) {
                Ok(length) => {
                    taken.frames += 1;
                    taken.bytes += length;
                    self.take(queue, table, &forward, &buffer[..length]);
                }
                Err(error) => {
                    taken.gone = !matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted);
                    break;
                }
            }
            if self.batch.bytes() >= SEND_AT {
                self.flush();
            }
        }
        self.frame = buffer;
        self.flush();
        taken
    }

    fn take(&mut self, queue: &Queue, table: &Table, forward: &ForwardTable, bytes: &[u8]) {
        let port = &queue.port;
        let Ok(virtio) = VirtioHeader::parse(bytes) else { return self.core.drop(None, DropReason::Malformed) };
        let frame = &bytes[VIRTIO_HEADER..];
        let Some(destination) = frame.first_chunk::<6>().filter(|_| frame.len() >= ETHERNET_HEADER) else {
            return self.core.drop(None, DropReason::Malformed);
        };
        let multicast = destination[0] & 1 != 0;
        if multicast && self.answer(queue, forward, frame) {
            return;
        }
        let plan = match segment::plan(&virtio, frame) {
            Ok(plan) => plan,
            Err(_) => return self.core.drop(None, DropReason::Malformed),
        };
        if multicast {
            return self.flood(port, table, forward, &plan, frame);
        }
        match self.destination(table, forward, destination) {
            Ok(peer) => self.send(port, peer, &plan, frame),
            Err(reason) => self.core.drop(None, reason),
        }
    }

    fn destination<'t>(
        &self,
        table: &'t Table,
        forward: &ForwardTable,
        mac: &Mac,
    ) -> Result<&'t Arc<Peer>, DropReason> {
        let address = forward.destinations.get(mac).ok_or(DropReason::UnknownDestination)?;
        table.peers.get(address).ok_or(DropReason::UnknownPeer)
    }

    /// Answers a question for a neighbour on another host. False where it is none, or not known.
    fn answer(&self, queue: &Queue, forward: &ForwardTable, frame: &[u8]) -> bool {
        let Some(question) = neighbour::parse(frame) else { return false };
        let Some(mac) = forward.neighbours.get(&question.target) else { return false };
        let mut answer = [0; 128];
        let length = neighbour::answer(&question, *mac, &mut answer);
        let virtio = VirtioHeader::NONE.to_bytes();
        let parts = [&virtio[..], &answer[..length]]
            .map(|part| libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() });
        if queue.port.write(queue.index, &parts).is_err() {
            self.core.drop(None, DropReason::TapRefused);
        }
        true
    }

    fn flood(&mut self, port: &Port, table: &Table, forward: &ForwardTable, plan: &Plan, frame: &[u8]) {
        if !port.flood {
            return self.core.drop(None, DropReason::Multicast);
        }
        for peer in forward.peers.iter().filter_map(|address| table.peers.get(address)) {
            self.send(port, peer, plan, frame);
        }
    }

    /// Cuts the frame, seals the packets and adds them to the batch.
    fn send(&mut self, port: &Port, peer: &Peer, plan: &Plan, frame: &[u8]) {
        let Some(endpoint) = peer.endpoint() else { return self.core.drop(Some(peer), DropReason::NoEndpoint) };
        if plan.length(0) > port.longest {
            return self.core.drop(Some(peer), DropReason::TooBig);
        }
        let hash = plan.layout.map_or(0, |layout| flow_hash(frame, &layout));
        let count = plan.count();
        let outer = peer.outer.length();
        let Some(sending) = peer.sending() else { return self.wait(port, peer, plan, frame, hash) };
        let counter = sending.session.reserve(count as u64);
        let mut bytes = 0;
        for index in 0..count {
            let length = DATA_OFFSET + outer + plan.length(index) + AEAD_SIZE;
            if self.batch.room(length).is_none() {
                self.send_batch();
            }
            let Some(message) = self.batch.room(length) else { return self.core.drop(Some(peer), DropReason::TooBig) };
            let end = length - AEAD_SIZE;
            plan.write(frame, index, &mut message[DATA_OFFSET + outer..end]);
            peer.outer.write(&mut message[DATA_OFFSET..end], port.vni, hash);
            if sending.session.seal_in_place(counter + index as u64, message).is_ok() {
                self.batch.commit(length, endpoint, self.merge);
                bytes += length;
            }
        }
        peer.sent.add(count as u64, bytes as u64);
        sending.tunnel.activity.sent(now());
    }

    /// Without a session: the packets wait, and a handshake begins.
    fn wait(&self, port: &Port, peer: &Peer, plan: &Plan, frame: &[u8], hash: u32) {
        let outer = peer.outer.length();
        for index in 0..plan.count() {
            let mut packet = vec![0; outer + plan.length(index)];
            plan.write(frame, index, &mut packet[outer..]);
            peer.outer.write(&mut packet, port.vni, hash);
            if !peer.wait(&packet) {
                self.core.drop(Some(peer), DropReason::NoSession);
            }
        }
        self.core.initiate(peer);
    }

    fn flush(&mut self) {
        if !self.batch.is_empty() {
            self.send_batch();
        }
    }

    fn send_batch(&mut self) {
        let (core, thread) = (self.core, self.thread);
        let failed = |_: &_, count: usize| (0..count).for_each(|_| core.drop(None, DropReason::SendFailed));
        if !self.batch.send(|to| core.socket(to, thread), failed) {
            tracing::warn!("the interface cannot cut UDP sends; going on without UDP_SEGMENT");
            core.udp_segment.store(false, Relaxed);
        }
        self.merge = core.udp_segment.load(Relaxed);
    }
}

fn read(queue: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes at most the buffer's length into it.
    let length = unsafe { libc::read(queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
    if length < 0 { Err(io::Error::last_os_error()) } else { Ok(length as usize) }
}
