//! What all threads of a device share: sockets, tables, counters, and the handling of handshakes.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use skep_noise::{AEAD_SIZE, DATA_OFFSET, DATA_OVERHEAD_SZ, Packet, TunnResult, WireGuardError, parse_handshake_anon};

use crate::clock::now;
use crate::config::Config;
use crate::gate::Gate;
use crate::peer::{Peer, Slot, Table, Tunnel};
use crate::port::Port;
use crate::rcu::{Current, lock};
use crate::socket;
use crate::statistics::{DropReason, Drops};
use crate::timers::Alarm;

/// Longer than any handshake message.
const HANDSHAKE_BUFFER: usize = 256;

/// Shared by the threads of a device.
pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) sockets: Vec<OwnedFd>,
    /// Of `sockets`, which are for IPv4 and for IPv6.
    pub(crate) v4: Vec<usize>,
    pub(crate) v6: Vec<usize>,
    pub(crate) table: Current<Table>,
    pub(crate) ports: Current<HashMap<u32, Arc<Port>>>,
    pub(crate) drops: Drops,
    pub(crate) alarm: Alarm,
    pub(crate) gate: Mutex<Gate>,
    pub(crate) stopping: AtomicBool,
    /// Cleared when an interface turns out not to support it.
    pub(crate) udp_segment: AtomicBool,
}

impl Core {
    /// The socket of a thread for an address of this kind.
    #[inline]
    pub(crate) fn socket(&self, to: &SocketAddr, thread: usize) -> Option<&OwnedFd> {
        let sockets = if to.is_ipv4() { &self.v4 } else { &self.v6 };
        let index = sockets.get(thread % sockets.len().max(1))?;
        self.sockets.get(*index)
    }

    pub(crate) fn drop(&self, peer: Option<&Peer>, reason: DropReason) {
        self.drops.count(reason);
        if let Some(peer) = peer {
            peer.drops.count(reason);
        }
    }

    /// Sends one handshake message or keepalive.
    fn send(&self, peer: &Peer, message: &[u8]) {
        let Some(to) = peer.endpoint() else { return self.drop(Some(peer), DropReason::NoEndpoint) };
        match self.socket(&to, 0).map(|socket| socket::send(socket, message, &to)) {
            Some(Ok(())) => peer.sent.add(1, message.len() as u64),
            _ => self.drop(Some(peer), DropReason::SendFailed),
        }
    }

    /// Begins handshakes with a peer that has no session: with the best pair of keys, and while keys change with the others,
    /// as the other end may not know the best one yet. Does nothing for those that are under way.
    pub(crate) fn initiate(&self, peer: &Peer) {
        if peer.endpoint().is_none() {
            return;
        }
        let mut begun = false;
        for tunnel in peer.tunnels() {
            let mut buffer = [0; HANDSHAKE_BUFFER];
            let mut protocol = lock(&tunnel.protocol);
            if protocol.current_session().is_some() {
                break;
            }
            if let TunnResult::WriteToNetwork(message) = protocol.format_handshake_initiation(&mut buffer, false, now())
            {
                self.send(peer, message);
                begun = true;
            }
        }
        if begun {
            self.alarm.wake();
        }
    }

    /// After anything under the lock of a tunnel: makes new sessions visible, and sends what waited for one.
    pub(crate) fn publish(&self, peer: &Peer, tunnel: &Tunnel) {
        let changed = tunnel.publish(&lock(&tunnel.protocol));
        if changed {
            peer.select();
            self.alarm.wake();
            self.send_waiting(peer);
        }
    }

    fn send_waiting(&self, peer: &Peer) {
        let Some(sending) = peer.sending() else { return };
        for packet in peer.take_waiting() {
            let mut message = vec![0; packet.len() + DATA_OVERHEAD_SZ];
            message[DATA_OFFSET..DATA_OFFSET + packet.len()].copy_from_slice(&packet);
            debug_assert_eq!(DATA_OVERHEAD_SZ, DATA_OFFSET + AEAD_SIZE);
            if sending.session.seal_in_place(sending.session.reserve(1), &mut message).is_ok() {
                sending.tunnel.activity.sent(now());
                self.send(peer, &message);
            }
        }
    }

    /// A packet of a session was opened that is not the one we seal with: the other end has it, so it may become that.
    pub(crate) fn confirm(&self, slot: &Slot, index: u32) {
        lock(&slot.tunnel.protocol).confirm_session(index);
        self.publish(&slot.peer, &slot.tunnel);
    }

    /// Handles a message that is not data: handshakes and cookies.
    pub(crate) fn handshake(&self, message: &[u8], from: SocketAddr, table: &Table) {
        let mut reason = DropReason::HandshakeRefused;
        for (place, identity) in table.identities.iter().enumerate() {
            let mut cookie = [0; HANDSHAKE_BUFFER];
            match identity.limiter.verify_packet(Some(from.ip()), message, &mut cookie, now()) {
                Ok(Packet::HandshakeInit(_)) if !lock(&self.gate).admit(from.ip(), now()) => {
                    return self.drop(None, DropReason::HandshakeLimited);
                }
                Ok(packet) => {
                    if self.verified(packet, place, from, table).is_ok() {
                        return;
                    }
                }
                Err(TunnResult::WriteToNetwork(cookie)) => {
                    if let Some(socket) = self.socket(&from, 0) {
                        // A cookie that is lost is asked for again.
                        let _ = socket::send(socket, cookie, &from);
                    }
                    return self.drop(None, DropReason::HandshakeLimited);
                }
                Err(TunnResult::Err(WireGuardError::InvalidPacket)) => reason = DropReason::UnknownSession,
                Err(_) => {}
            }
        }
        self.drop(None, reason);
    }

    fn verified(
        &self,
        packet: Packet<'_>,
        place: usize,
        from: SocketAddr,
        table: &Table,
    ) -> Result<(), WireGuardError> {
        let slot = match &packet {
            Packet::HandshakeInit(init) => {
                let identity = table.identities.get(place).ok_or(WireGuardError::WrongKey)?;
                let half = parse_handshake_anon(&identity.private.secret(), &identity.public, init)?;
                let slot = table.by_key.get(&(place, half.peer_static_public)).ok_or(WireGuardError::WrongKey)?;
                table.slots.get(*slot).and_then(Option::as_ref)
            }
            Packet::HandshakeResponse(response) => table.slot(response.receiver_idx),
            Packet::PacketCookieReply(reply) => table.slot(reply.receiver_idx),
            Packet::PacketData(_) => None,
        };
        let Slot { tunnel, peer } = slot.ok_or(WireGuardError::WrongIndex)?;
        let is_cookie = matches!(packet, Packet::PacketCookieReply(_));
        let mut buffer = [0; HANDSHAKE_BUFFER];
        let answer = lock(&tunnel.protocol).handle_verified_packet(packet, &mut buffer, now());
        match answer {
            TunnResult::Err(error) => return Err(error),
            TunnResult::WriteToNetwork(answer) => {
                // It is authentic, so it says where the peer is; a cookie proves less.
                if !is_cookie {
                    peer.set_endpoint(from);
                }
                self.send(peer, answer);
            }
            _ => {}
        }
        self.publish(peer, tunnel);
        Ok(())
    }

    /// Does what is due in all tunnels. True while there is anything to wait for.
    pub(crate) fn tick(&self, last_tries: &mut HashMap<IpAddr, Duration>) -> bool {
        let table = self.table.load();
        let mut alive = false;
        for slot in table.slots.iter().flatten() {
            let Slot { tunnel, peer } = slot;
            let mut buffer = [0; HANDSHAKE_BUFFER];
            let now = now();
            let mut protocol = lock(&tunnel.protocol);
            protocol.note_traffic(&tunnel.activity.traffic());
            let (mut handshakes, mut expired) = (false, false);
            match protocol.update_timers(&mut buffer, now) {
                TunnResult::WriteToNetwork(message) => {
                    handshakes = message.len() == skep_noise::HANDSHAKE_INIT_SZ;
                    self.send(peer, message);
                }
                TunnResult::Err(_) => expired = true,
                _ => {}
            }
            alive |= !protocol.is_idle();
            let keepalive = protocol.persistent_keepalive();
            drop(protocol);
            self.publish(peer, tunnel);
            if expired {
                self.expired(peer, keepalive, now, last_tries);
            } else if handshakes {
                // New keys are due: with a better pair of keys, if there is one by now.
                self.initiate(peer);
            }
        }
        alive && !self.stopping.load(Relaxed)
    }

    /// The peer does not answer. What waits for it is dropped; with keepalives it is tried again, else when there is
    /// something to send.
    fn expired(&self, peer: &Peer, keepalive: Option<u16>, now: Duration, last_tries: &mut HashMap<IpAddr, Duration>) {
        if peer.sending().is_some() {
            return;
        }
        peer.reset_endpoint();
        for _ in peer.take_waiting() {
            self.drop(Some(peer), DropReason::NoSession);
        }
        let Some(interval) = keepalive else { return };
        let last = last_tries.entry(peer.fabric_address).or_insert(now);
        if now.saturating_sub(*last) >= Duration::from_secs(interval.into()) {
            *last = now;
            self.initiate(peer);
        }
    }
}
