//! What a device is told: keys, addresses, offloads, peers, forwarding entries. Plain values.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;

use skep_noise::TimerSettings;
use skep_noise::x25519::{PublicKey, StaticSecret};

use crate::Mac;

/// The public key of a host.
pub type Key = [u8; 32];

/// The private key of a host; not printed, wiped when dropped.
#[derive(Clone)]
pub struct PrivateKey(StaticSecret);

impl PrivateKey {
    /// A new one, from the system's random numbers. `None` where there are none.
    pub fn generate() -> Option<PrivateKey> {
        skep_noise::random_secret().ok().map(PrivateKey)
    }

    /// From its 32 bytes (Curve25519, RFC 7748).
    pub fn from_bytes(bytes: [u8; 32]) -> PrivateKey {
        PrivateKey(StaticSecret::from(bytes))
    }

    /// Its 32 bytes, to be stored.
    pub fn to_bytes(&self) -> [u8; 32] {
        self.0.to_bytes()
    }

    /// The public key that belongs to it.
    pub fn public(&self) -> Key {
        PublicKey::from(&self.0).to_bytes()
    }

    pub(crate) fn secret(&self) -> StaticSecret {
        self.0.clone()
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

/// Which of the kernel's offloads are used where it has them. All are by default; each has a way without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offload {
    /// UDP_SEGMENT (Linux 4.18): many datagrams in one send.
    pub udp_segment: bool,
    /// UDP_GRO (Linux 5.0): many datagrams in one receive.
    pub udp_gro: bool,
    /// TSO on the TAP: large TCP frames from containers, to be cut here.
    pub tap_tso: bool,
    /// USO on the TAP (Linux 6.2): the same for UDP, both ways.
    pub tap_uso: bool,
}

impl Default for Offload {
    fn default() -> Self {
        Offload { udp_segment: true, udp_gro: true, tap_tso: true, tap_uso: true }
    }
}

/// What a device starts with.
#[derive(Debug, Clone)]
pub struct Config {
    /// Our key.
    pub private_key: PrivateKey,
    /// UDP addresses to listen on, at most one for IPv4 and one for IPv6, with the same port; port 0 lets the kernel choose.
    pub listen: Vec<SocketAddr>,
    /// Our addresses inside the tunnels: one for IPv4, one for IPv6, or both. Peers have one of them.
    pub fabric_addresses: Vec<IpAddr>,
    /// The UDP port of VXLAN inside the tunnels.
    pub vxlan_port: u16,
    /// Threads that send, and sockets (with a thread each) that receive, per address to listen on; at least one.
    pub threads: usize,
    /// Offloads that may be used.
    pub offload: Offload,
    /// WireGuard's times; other than the default for tests only.
    pub timers: TimerSettings,
}

/// One peer: another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerConfig {
    /// Its address inside the tunnel, which names the peer: the only inner source that is accepted from it.
    pub fabric_address: IpAddr,
    /// Its public keys, newest first: two while it changes its key.
    pub public_keys: Vec<Key>,
    /// Where it listens; `None` until it speaks first. Later it is where it last spoke from; when it does not answer there
    /// (for 90 s), it is looked for here again.
    pub endpoint: Option<SocketAddr>,
    /// Seconds between keepalives; `None` for no keepalives.
    pub keepalive: Option<u16>,
}

/// A network's TAP, made by [`crate::tap::open`].
#[derive(Debug)]
pub struct PortConfig {
    /// The network.
    pub vni: u32,
    /// Its queues.
    pub queues: Vec<OwnedFd>,
    /// The network's MTU, of IP packets; longer ones are dropped.
    pub mtu: u16,
    /// Whether the TAP takes and gives large UDP frames: what [`crate::tap::open`] said.
    pub uso: bool,
    /// Broadcast and multicast frames go to the peers that have forwarding entries; otherwise they are dropped.
    pub flood: bool,
}

/// One endpoint of a network on another host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Forward {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its IP addresses; questions for them are answered here.
    pub addresses: Vec<IpAddr>,
    /// The peer on which it is, by its fabric address.
    pub peer: IpAddr,
}

/// A difference: removals come first.
#[derive(Debug, Clone)]
pub struct Change<T, K> {
    /// New or changed ones.
    pub put: Vec<T>,
    /// Those that go, by what names them; unknown ones are ignored.
    pub remove: Vec<K>,
}

impl<T, K> Change<T, K> {
    /// Only new or changed ones.
    pub fn put(put: Vec<T>) -> Change<T, K> {
        Change { put, remove: vec![] }
    }

    /// Only removals.
    pub fn remove(remove: Vec<K>) -> Change<T, K> {
        Change { put: vec![], remove }
    }
}
