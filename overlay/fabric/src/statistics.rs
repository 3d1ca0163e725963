//! Counters: written on the data path without locks, read by whoever asks.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Why a frame or packet went no further.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// From a TAP or a peer: headers that make no sense.
    Malformed,
    /// From a TAP: broadcast or multicast, and no question that the tables answer.
    Multicast,
    /// From a TAP: no forwarding entry for the Ethernet address.
    UnknownDestination,
    /// From a TAP: the forwarding entry's peer is not installed.
    UnknownPeer,
    /// From a TAP: longer than the network's MTU.
    TooBig,
    /// To a peer: nobody knows yet where it is.
    NoEndpoint,
    /// To a peer: too many packets wait for a session.
    NoSession,
    /// The kernel refused to send.
    SendFailed,
    /// From outside: no session with this index, or no WireGuard at all.
    UnknownSession,
    /// From outside: not sealed with the session's key.
    Forged,
    /// From outside: its counter was seen before or is too old.
    Replayed,
    /// From outside: a handshake that is refused: unknown key, replayed, wrong code.
    HandshakeRefused,
    /// From outside: too many handshakes, of all (a cookie was sent instead) or of this sender.
    HandshakeLimited,
    /// From a peer: the inner source is not its fabric address.
    WrongSource,
    /// From a peer: the inner destination is not ours.
    WrongDestination,
    /// From a peer: not for the VXLAN port.
    WrongPort,
    /// From a peer: a network that is not attached here.
    UnknownNetwork,
    /// To a TAP: the kernel did not take it.
    TapRefused,
}

impl DropReason {
    /// All of them, in order.
    pub const ALL: [DropReason; 18] = [
        DropReason::Malformed,
        DropReason::Multicast,
        DropReason::UnknownDestination,
        DropReason::UnknownPeer,
        DropReason::TooBig,
        DropReason::NoEndpoint,
        DropReason::NoSession,
        DropReason::SendFailed,
        DropReason::UnknownSession,
        DropReason::Forged,
        DropReason::Replayed,
        DropReason::HandshakeRefused,
        DropReason::HandshakeLimited,
        DropReason::WrongSource,
        DropReason::WrongDestination,
        DropReason::WrongPort,
        DropReason::UnknownNetwork,
        DropReason::TapRefused,
    ];
}

/// Counters by reason.
#[derive(Debug, Default)]
pub(crate) struct Drops([AtomicU64; DropReason::ALL.len()]);

impl Drops {
    pub(crate) fn count(&self, reason: DropReason) {
        self.0[reason as usize].fetch_add(1, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Vec<(DropReason, u64)> {
        let counts = DropReason::ALL.map(|reason| (reason, self.0[reason as usize].load(Relaxed)));
        counts.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// Packets and bytes one way: of tunnelled packets with all headers inside WireGuard's.
#[derive(Debug, Default)]
pub(crate) struct Counter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl Counter {
    pub(crate) fn add(&self, packets: u64, bytes: u64) {
        self.packets.fetch_add(packets, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn snapshot(&self) -> Count {
        Count { packets: self.packets.load(Relaxed), bytes: self.bytes.load(Relaxed) }
    }
}

/// Packets and bytes since the peer was installed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// WireGuard data messages, keepalives too.
    pub packets: u64,
    /// Their bytes as UDP payload.
    pub bytes: u64,
}

/// The state of one peer.
#[derive(Debug, Clone)]
pub struct PeerStatistics {
    /// Which peer.
    pub fabric_address: IpAddr,
    /// Where it is, as far as known.
    pub endpoint: Option<SocketAddr>,
    /// How long ago the session that is used was made; `None` without one.
    pub last_handshake: Option<Duration>,
    /// Whether the session that is used is between the newest keys of both.
    pub newest_keys: bool,
    /// The round trip of the last handshake that was begun here.
    pub handshake_rtt: Option<Duration>,
    /// Sent to it.
    pub sent: Count,
    /// Received from it and authentic.
    pub received: Count,
    /// Dropped on the way from or to it; reasons that occurred.
    pub drops: Vec<(DropReason, u64)>,
}

/// The state of a device.
#[derive(Debug, Clone)]
pub struct Statistics {
    /// All peers, by fabric address.
    pub peers: Vec<PeerStatistics>,
    /// Dropped, of all peers and of none; reasons that occurred.
    pub drops: Vec<(DropReason, u64)>,
}

impl Statistics {
    /// How many were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops.iter().find(|(name, _)| *name == reason).map_or(0, |(_, count)| *count)
    }

    /// One peer's.
    pub fn peer(&self, fabric_address: IpAddr) -> Option<&PeerStatistics> {
        self.peers.iter().find(|peer| peer.fabric_address == fabric_address)
    }
}
