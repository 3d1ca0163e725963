//! A peer and its tunnels, as the threads of the data path see them.
//!
//! A tunnel is one pair of keys: ours and theirs. A peer has one, or up to four while one or both change their key. Handshakes
//! and timers happen under the tunnel's lock; sealing and opening need only the sessions that are published here.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use skep_noise::{N_SESSIONS, RateLimiter, Session, Traffic, Tunn, WireGuardError, x25519};

use crate::config::{Key, PrivateKey};
use crate::rcu::lock;
use crate::statistics::{Counter, Drops};
use crate::vxlan::Outer;

/// Handshake messages a second that are answered without a cookie (as in boringtun's device).
const HANDSHAKES_PER_SECOND: u64 = 100;
/// Packets that wait for a session; more are dropped.
const MAX_WAITING: usize = 256;

/// One of our keys.
pub(crate) struct Identity {
    pub(crate) private: PrivateKey,
    pub(crate) public: x25519::PublicKey,
    pub(crate) limiter: Arc<RateLimiter>,
}

impl Identity {
    pub(crate) fn new(private: PrivateKey, now: Duration) -> Result<Identity, WireGuardError> {
        let public = x25519::PublicKey::from(private.public());
        let limiter = Arc::new(RateLimiter::new(&public, HANDSHAKES_PER_SECOND, now)?);
        Ok(Identity { private, public, limiter })
    }
}

/// When packets were sealed and opened, in nanoseconds of the device's clock.
#[derive(Default)]
pub(crate) struct Activity {
    sent: AtomicU64,
    data_sent: AtomicU64,
    received: AtomicU64,
    data_received: AtomicU64,
}

impl Activity {
    pub(crate) fn sent(&self, now: Duration) {
        self.sent.store(now.as_nanos() as u64, Relaxed);
        self.data_sent.store(now.as_nanos() as u64, Relaxed);
    }

    pub(crate) fn received(&self, now: Duration, data: bool) {
        self.received.store(now.as_nanos() as u64, Relaxed);
        if data {
            self.data_received.store(now.as_nanos() as u64, Relaxed);
        }
    }

    pub(crate) fn traffic(&self) -> Traffic {
        let load = |time: &AtomicU64| Duration::from_nanos(time.load(Relaxed));
        Traffic {
            sent: load(&self.sent),
            data_sent: load(&self.data_sent),
            received: load(&self.received),
            data_received: load(&self.data_received),
        }
    }
}

/// One pair of keys.
pub(crate) struct Tunnel {
    /// Its place in [`Table::slots`]; the first 24 bits of its sessions' indexes.
    pub(crate) slot: usize,
    pub(crate) identity: Arc<Identity>,
    pub(crate) remote: Key,
    pub(crate) protocol: Mutex<Tunn>,
    pub(crate) activity: Activity,
    /// The receiving index of the session that is sealed with; 0 for none, which no session has.
    pub(crate) current_index: AtomicU32,
    published: RwLock<Published>,
}

#[derive(Default)]
struct Published {
    generation: u64,
    current: Option<Arc<Session>>,
    receiving: [Option<Arc<Session>>; N_SESSIONS],
}

impl Tunnel {
    pub(crate) fn new(slot: usize, identity: Arc<Identity>, remote: Key, protocol: Tunn) -> Tunnel {
        Tunnel {
            slot,
            identity,
            remote,
            protocol: Mutex::new(protocol),
            activity: Activity::default(),
            current_index: AtomicU32::new(0),
            published: RwLock::default(),
        }
    }

    /// The session with this receiving index, to open with; opening checks the index itself.
    pub(crate) fn receiving(&self, index: u32) -> Option<Arc<Session>> {
        let published = self.published.read().unwrap_or_else(PoisonError::into_inner);
        published.receiving[index as usize % N_SESSIONS].clone()
    }

    fn current(&self) -> Option<Arc<Session>> {
        self.published.read().unwrap_or_else(PoisonError::into_inner).current.clone()
    }

    /// Makes the sessions of the protocol visible. True if they changed: the peer selects anew then.
    pub(crate) fn publish(&self, protocol: &Tunn) -> bool {
        let mut published = self.published.write().unwrap_or_else(PoisonError::into_inner);
        if published.generation == protocol.generation() {
            return false;
        }
        published.generation = protocol.generation();
        published.current = protocol.current_session().cloned();
        published.receiving = protocol.sessions().clone();
        self.current_index.store(published.current.as_ref().map_or(0, |session| session.receiving_index()), Relaxed);
        true
    }
}

/// What to seal with.
pub(crate) struct Sending {
    pub(crate) session: Arc<Session>,
    pub(crate) tunnel: Arc<Tunnel>,
}

/// Another host.
pub(crate) struct Peer {
    pub(crate) fabric_address: IpAddr,
    pub(crate) outer: Outer,
    pub(crate) sent: Counter,
    pub(crate) received: Counter,
    pub(crate) drops: Drops,
    endpoint: RwLock<Option<SocketAddr>>,
    /// Where it should be, as far as we were told.
    told: RwLock<Option<SocketAddr>>,
    sending: RwLock<Option<Arc<Sending>>>,
    /// The best pair of keys first.
    tunnels: RwLock<Vec<Arc<Tunnel>>>,
    waiting: Mutex<VecDeque<Vec<u8>>>,
}

impl Peer {
    pub(crate) fn new(fabric_address: IpAddr, outer: Outer, endpoint: Option<SocketAddr>) -> Peer {
        Peer {
            fabric_address,
            outer,
            sent: Counter::default(),
            received: Counter::default(),
            drops: Drops::default(),
            endpoint: RwLock::new(endpoint),
            told: RwLock::new(endpoint),
            sending: RwLock::default(),
            tunnels: RwLock::default(),
            waiting: Mutex::default(),
        }
    }

    pub(crate) fn endpoint(&self) -> Option<SocketAddr> {
        *self.endpoint.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is now: told, or learned from an authentic packet.
    pub(crate) fn set_endpoint(&self, endpoint: SocketAddr) {
        if self.endpoint() != Some(endpoint) {
            tracing::debug!(peer = %self.fabric_address, %endpoint, "endpoint");
            *self.endpoint.write().unwrap_or_else(PoisonError::into_inner) = Some(endpoint);
        }
    }

    /// We were told where it is.
    pub(crate) fn tell_endpoint(&self, endpoint: SocketAddr) {
        *self.told.write().unwrap_or_else(PoisonError::into_inner) = Some(endpoint);
        self.set_endpoint(endpoint);
    }

    /// It does not answer where it was last: it is looked for where it should be.
    pub(crate) fn reset_endpoint(&self) {
        let told = *self.told.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoint) = told {
            self.set_endpoint(endpoint);
        }
    }

    pub(crate) fn sending(&self) -> Option<Arc<Sending>> {
        self.sending.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn tunnels(&self) -> Vec<Arc<Tunnel>> {
        self.tunnels.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_tunnels(&self, tunnels: Vec<Arc<Tunnel>>) {
        *self.tunnels.write().unwrap_or_else(PoisonError::into_inner) = tunnels;
        self.select();
    }

    /// Seals from now on with the session of the best pair of keys that has one.
    pub(crate) fn select(&self) {
        // Locked first, so that the last one to select has seen the last change.
        let mut sending = self.sending.write().unwrap_or_else(PoisonError::into_inner);
        let tunnels = self.tunnels.read().unwrap_or_else(PoisonError::into_inner);
        *sending = tunnels
            .iter()
            .find_map(|tunnel| tunnel.current().map(|session| Arc::new(Sending { session, tunnel: tunnel.clone() })));
    }

    /// Keeps a packet until there is a session. False where too many wait.
    pub(crate) fn wait(&self, packet: &[u8]) -> bool {
        let mut waiting = lock(&self.waiting);
        let room = waiting.len() < MAX_WAITING;
        if room {
            waiting.push_back(packet.to_vec());
        }
        room
    }

    pub(crate) fn take_waiting(&self) -> VecDeque<Vec<u8>> {
        std::mem::take(&mut *lock(&self.waiting))
    }
}

/// A tunnel and whose it is.
#[derive(Clone)]
pub(crate) struct Slot {
    pub(crate) tunnel: Arc<Tunnel>,
    pub(crate) peer: Arc<Peer>,
}

/// All peers, as one version.
#[derive(Default)]
pub(crate) struct Table {
    /// Our keys, newest first.
    pub(crate) identities: Vec<Arc<Identity>>,
    pub(crate) peers: HashMap<IpAddr, Arc<Peer>>,
    /// By the first 24 bits of a session's index.
    pub(crate) slots: Vec<Option<Slot>>,
    /// By our key (its place in `identities`) and theirs.
    pub(crate) by_key: HashMap<(usize, Key), usize>,
}

impl Table {
    /// The tunnel to which a receiving index belongs.
    #[inline]
    pub(crate) fn slot(&self, index: u32) -> Option<&Slot> {
        self.slots.get((index >> 8) as usize)?.as_ref()
    }
}
