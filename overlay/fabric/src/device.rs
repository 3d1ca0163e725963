//! The device: starts and stops the threads, and turns what it is told into tables for them.
//!
//! Called by the network daemon. All changes happen under one lock; the data path never takes it, it sees whole versions of the
//! tables. Must be started in the namespace whose network the tunnels are to use; TAPs may come from any other.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use skep_noise::{Tunn, WireGuardError, x25519};

use crate::clock::now;
use crate::config::{Change, Config, Forward, Key, PeerConfig, PortConfig, PrivateKey};
use crate::core::Core;
use crate::peer::{Identity, Peer, Slot, Table, Tunnel};
use crate::port::{Entries, ForwardTable, Port, Turn};
use crate::rcu::{Current, lock};
use crate::statistics::{Drops, PeerStatistics, Statistics};
use crate::timers::{self, Alarm};
use crate::transmit::{self, Queue, Queues, STOP};
use crate::vxlan::{MAX_VNI, Outer};
use crate::{Mac, receive, socket};

/// Keys of one host that are valid at the same time.
const MAX_KEYS: usize = 2;
/// Receiving indexes have 24 bits for the tunnel.
const MAX_TUNNELS: usize = 1 << 24;

/// Why a device did not start, or refused a change. A refused change changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No address to listen on, or two of the same kind.
    #[error("give one address to listen on, or one for IPv4 and one for IPv6")]
    Listen,
    /// The UDP port cannot be used.
    #[error("cannot listen on {address}")]
    Bind {
        /// Where.
        address: SocketAddr,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
    /// The system has no random numbers.
    #[error("cannot make secrets")]
    Random(#[source] WireGuardError),
    /// Threads or descriptors are used up.
    #[error("cannot start the device's threads")]
    Threads(#[source] io::Error),
    /// A peer's fabric address is of a kind that this host has none of.
    #[error("peer {0} cannot be reached: this host has no fabric address of the same kind")]
    Family(IpAddr),
    /// A peer without keys, or with more than two.
    #[error("peer {0} must have one public key, or two while it changes it")]
    Keys(IpAddr),
    /// Two peers with one key.
    #[error("the public key of peer {0} is also that of peer {1}")]
    SharedKey(IpAddr, IpAddr),
    /// More tunnels than indexes.
    #[error("too many peers")]
    TooMany,
    /// A number above 16777215.
    #[error("{0} is no VXLAN network identifier")]
    Vni(u32),
    /// The network has a port already.
    #[error("network {0} is attached already")]
    Attached(u32),
    /// The network has no port.
    #[error("network {0} is not attached")]
    NotAttached(u32),
    /// A queue cannot be waited for: it is no open TAP.
    #[error("cannot read from the TAP of network {vni}")]
    Queue {
        /// The network.
        vni: u32,
        /// What the kernel says.
        #[source]
        source: io::Error,
    },
}

/// A running device. Dropping it stops its threads and closes its descriptors.
pub struct Device {
    core: Arc<Core>,
    control: Mutex<Control>,
    transmitters: Vec<Arc<Queues>>,
    stop: EventFd,
    threads: Vec<JoinHandle<()>>,
    port: u16,
}

/// What changes are made from.
#[derive(Default)]
struct Control {
    identities: Vec<Arc<Identity>>,
    peers: BTreeMap<IpAddr, (PeerConfig, Arc<Peer>)>,
    networks: BTreeMap<u32, Network>,
    next_event: u64,
}

struct Network {
    entries: Entries,
    port: Arc<Port>,
    /// The thread and event of each queue.
    events: Vec<(usize, u64)>,
}

impl Device {
    /// Starts the threads; there are no peers and networks yet.
    ///
    /// # Errors
    /// [`DeviceError`]: nothing is left running then.
    pub fn start(config: Config) -> Result<Device, DeviceError> {
        let families: Vec<bool> = config.listen.iter().map(SocketAddr::is_ipv4).collect();
        if !matches!(families[..], [_] | [true, false] | [false, true]) {
            return Err(DeviceError::Listen);
        }
        let threads = config.threads.max(1);
        let (sockets, port) = open_sockets(&config, threads)?;
        let of_family = |v4: bool| {
            let is = |socket: &OwnedFd| socket::local_address(socket).is_ok_and(|address| address.is_ipv4() == v4);
            sockets.iter().enumerate().filter(|(_, socket)| is(socket)).map(|(index, _)| index).collect::<Vec<_>>()
        };
        let (v4, v6) = (of_family(true), of_family(false));
        let segment = config.offload.udp_segment && sockets.iter().all(socket::has_udp_segment);
        let identity = Identity::new(config.private_key.clone(), now()).map_err(DeviceError::Random)?;
        let control = Control { identities: vec![Arc::new(identity)], ..Control::default() };
        let core = Arc::new(Core {
            config,
            sockets,
            v4,
            v6,
            table: Current::new(Table::default()),
            ports: Current::new(HashMap::new()),
            drops: Drops::default(),
            alarm: Alarm::default(),
            gate: Mutex::default(),
            stopping: AtomicBool::new(false),
            udp_segment: AtomicBool::new(segment),
        });
        let system = |error: nix::Error| DeviceError::Threads(error.into());
        let stop = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).map_err(system)?;
        let mut device =
            Device { core, control: Mutex::new(control), transmitters: vec![], stop, threads: vec![], port };
        for _ in 0..threads {
            let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system)?;
            epoll.add(&device.stop, EpollEvent::new(EpollFlags::EPOLLIN, STOP)).map_err(system)?;
            device.transmitters.push(Arc::new(Queues { epoll, by_event: Current::new(HashMap::new()) }));
        }
        device.core.table.store(lock(&device.control).table());
        device.spawn().map_err(DeviceError::Threads)?;
        Ok(device)
    }

    fn spawn(&mut self) -> io::Result<()> {
        for (thread, queues) in self.transmitters.iter().enumerate() {
            let (core, queues) = (self.core.clone(), queues.clone());
            let run = move || transmit::run(&core, &queues, thread);
            self.threads.push(std::thread::Builder::new().name(format!("fabric-tx{thread}")).spawn(run)?);
        }
        for index in 0..self.core.sockets.len() {
            let core = self.core.clone();
            let run = move || receive::run(&core, &core.sockets[index], index);
            self.threads.push(std::thread::Builder::new().name(format!("fabric-rx{index}")).spawn(run)?);
        }
        let core = self.core.clone();
        self.threads
            .push(std::thread::Builder::new().name("fabric-timer".to_owned()).spawn(move || timers::run(&core))?);
        Ok(())
    }

    /// The UDP port that it listens on.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Our public keys that are valid, newest first.
    pub fn public_keys(&self) -> Vec<Key> {
        lock(&self.control).identities.iter().map(|identity| identity.public.to_bytes()).collect()
    }

    /// Installs, changes and removes peers. A peer that is put again keeps its sessions, counters, and the endpoint that was
    /// learned unless another one than before is given.
    ///
    /// # Errors
    /// [`DeviceError::Family`], [`DeviceError::Keys`], [`DeviceError::SharedKey`], [`DeviceError::TooMany`].
    pub fn peers(&self, change: Change<PeerConfig, IpAddr>) -> Result<(), DeviceError> {
        let mut control = lock(&self.control);
        let mut peers = control.peers.clone();
        for address in &change.remove {
            peers.remove(address);
        }
        let mut greet = vec![];
        for config in change.put {
            let address = config.fabric_address;
            if config.public_keys.is_empty() || config.public_keys.len() > MAX_KEYS {
                return Err(DeviceError::Keys(address));
            }
            let peer = match peers.get(&address) {
                Some((before, peer)) => {
                    match config.endpoint {
                        Some(endpoint) if before.endpoint != config.endpoint => peer.tell_endpoint(endpoint),
                        _ => {}
                    }
                    peer.clone()
                }
                None => {
                    let mut ours = self.core.config.fabric_addresses.iter();
                    let outer = ours.find_map(|ours| Outer::new(*ours, address, self.core.config.vxlan_port));
                    let outer = outer.ok_or(DeviceError::Family(address))?;
                    Arc::new(Peer::new(address, outer, config.endpoint))
                }
            };
            greet.extend(config.keepalive.map(|_| peer.clone()));
            peers.insert(address, (config, peer));
        }
        check_keys(&peers)?;
        control.peers = peers;
        self.apply(&mut control)?;
        drop(control);
        for peer in greet {
            self.core.initiate(&peer);
        }
        self.core.alarm.wake();
        Ok(())
    }

    /// Seals and answers with a new key from now on; the one before stays valid until [`Device::retire`]. Sessions go on, and
    /// are replaced by ones of the new key with each peer that knows it.
    ///
    /// # Errors
    /// [`DeviceError::Random`], [`DeviceError::TooMany`].
    pub fn rotate(&self, private_key: PrivateKey) -> Result<(), DeviceError> {
        let mut control = lock(&self.control);
        if control.identities.first().is_some_and(|first| first.public.to_bytes() == private_key.public()) {
            return Ok(());
        }
        let identity = Identity::new(private_key, now()).map_err(DeviceError::Random)?;
        control.identities.retain(|known| known.public != identity.public);
        control.identities.insert(0, Arc::new(identity));
        control.identities.truncate(MAX_KEYS);
        self.apply(&mut control)?;
        let peers: Vec<_> = control.peers.values().map(|(_, peer)| peer.clone()).collect();
        drop(control);
        for peer in peers.iter().filter(|peer| peer.sending().is_some()) {
            self.core.initiate(peer);
        }
        Ok(())
    }

    /// Forgets all our keys but the newest, with their sessions.
    ///
    /// # Errors
    /// As [`Device::rotate`].
    pub fn retire(&self) -> Result<(), DeviceError> {
        let mut control = lock(&self.control);
        control.identities.truncate(1);
        self.apply(&mut control)
    }

    /// Gives each peer its tunnels and shows the threads the new table.
    fn apply(&self, control: &mut Control) -> Result<(), DeviceError> {
        let old = self.core.table.load();
        let mut free = (0..MAX_TUNNELS).filter(|slot| old.slots.get(*slot).is_none_or(Option::is_none));
        for (config, peer) in control.peers.values() {
            let before = peer.tunnels();
            let mut pairs: Vec<(usize, &Arc<Identity>, &Key)> = vec![];
            for (ours, identity) in control.identities.iter().enumerate() {
                pairs.extend(config.public_keys.iter().enumerate().map(|(theirs, key)| (ours + theirs, identity, key)));
            }
            pairs.sort_by_key(|(rank, ..)| *rank);
            let mut tunnels = vec![];
            for (_, identity, key) in pairs {
                let same = |tunnel: &&Arc<Tunnel>| Arc::ptr_eq(&tunnel.identity, identity) && tunnel.remote == *key;
                let tunnel = match before.iter().find(same) {
                    Some(tunnel) => {
                        lock(&tunnel.protocol).set_persistent_keepalive(config.keepalive);
                        tunnel.clone()
                    }
                    None => {
                        let slot = free.next().ok_or(DeviceError::TooMany)?;
                        let (ours, theirs) = (identity.private.secret(), x25519::PublicKey::from(*key));
                        let (limiter, timers) = (identity.limiter.clone(), self.core.config.timers);
                        let (index, keepalive) = (slot as u32, config.keepalive);
                        let protocol = Tunn::new(ours, theirs, None, keepalive, index, limiter, timers, now());
                        Arc::new(Tunnel::new(slot, identity.clone(), *key, protocol))
                    }
                };
                tunnels.push(tunnel);
            }
            peer.set_tunnels(tunnels);
        }
        self.core.table.store(control.table());
        Ok(())
    }

    /// Connects a network's TAP.
    ///
    /// # Errors
    /// [`DeviceError::Vni`], [`DeviceError::Attached`], [`DeviceError::Queue`].
    pub fn attach(&self, config: PortConfig) -> Result<(), DeviceError> {
        let vni = config.vni;
        if vni > MAX_VNI {
            return Err(DeviceError::Vni(vni));
        }
        let mut control = lock(&self.control);
        if control.networks.contains_key(&vni) {
            return Err(DeviceError::Attached(vni));
        }
        let port = Arc::new(Port {
            vni,
            turns: config.queues.iter().map(|_| Turn::default()).collect(),
            queues: config.queues,
            longest: usize::from(config.mtu) + 18,
            uso: config.uso,
            flood: config.flood,
            forward: Current::new(ForwardTable::default()),
        });
        let mut network = Network { entries: Entries::default(), port: port.clone(), events: vec![] };
        for (index, queue) in port.queues.iter().enumerate() {
            let (event, thread) = (control.next_event, control.next_event as usize % self.transmitters.len());
            control.next_event += 1;
            let Queues { epoll, by_event } = &*self.transmitters[thread];
            let mut events = (*by_event.load()).clone();
            events.insert(event, Queue { port: port.clone(), index });
            by_event.store(events);
            network.events.push((thread, event));
            if let Err(error) = epoll.add(queue.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, event)) {
                self.forget(&network);
                return Err(DeviceError::Queue { vni, source: error.into() });
            }
        }
        control.networks.insert(vni, network);
        self.core.ports.store(control.ports());
        Ok(())
    }

    /// Disconnects a network; its TAP's queues are closed as soon as no thread uses them.
    ///
    /// # Errors
    /// [`DeviceError::NotAttached`].
    pub fn detach(&self, vni: u32) -> Result<(), DeviceError> {
        let mut control = lock(&self.control);
        let network = control.networks.remove(&vni).ok_or(DeviceError::NotAttached(vni))?;
        self.core.ports.store(control.ports());
        self.forget(&network);
        Ok(())
    }

    fn forget(&self, network: &Network) {
        for ((thread, event), queue) in network.events.iter().zip(&network.port.queues) {
            let Queues { epoll, by_event } = &*self.transmitters[*thread];
            // It fails where the queue was never added.
            let _ = epoll.delete(queue.as_fd());
            let mut events = (*by_event.load()).clone();
            events.remove(event);
            by_event.store(events);
        }
    }

    /// Changes the forwarding entries of a network. Peers may be installed before or after.
    ///
    /// # Errors
    /// [`DeviceError::NotAttached`].
    pub fn forward(&self, vni: u32, change: Change<Forward, Mac>) -> Result<(), DeviceError> {
        let mut control = lock(&self.control);
        let network = control.networks.get_mut(&vni).ok_or(DeviceError::NotAttached(vni))?;
        let table = network.entries.change(change);
        network.port.forward.store(table);
        Ok(())
    }

    /// Counters and states of now.
    pub fn statistics(&self) -> Statistics {
        let control = lock(&self.control);
        let peers = control.peers.iter().map(|(address, (_, peer))| {
            let sending = peer.sending();
            let tunnels = peer.tunnels();
            let protocol = sending.as_ref().map(|sending| lock(&sending.tunnel.protocol));
            let newest = |slot: usize| tunnels.first().is_some_and(|first| first.slot == slot);
            PeerStatistics {
                fabric_address: *address,
                endpoint: peer.endpoint(),
                last_handshake: protocol
                    .as_ref()
                    .and_then(|protocol| protocol.last_handshake())
                    .map(|made| now().saturating_sub(made)),
                newest_keys: sending.as_ref().is_some_and(|sending| newest(sending.tunnel.slot)),
                handshake_rtt: protocol
                    .as_ref()
                    .and_then(|protocol| protocol.last_rtt())
                    .map(|rtt| Duration::from_millis(rtt.into())),
                sent: peer.sent.snapshot(),
                received: peer.received.snapshot(),
                drops: peer.drops.snapshot(),
            }
        });
        Statistics { peers: peers.collect(), drops: self.core.drops.snapshot() }
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        self.core.stopping.store(true, Relaxed);
        self.core.alarm.wake();
        // Never full: it is written once.
        let _ = self.stop.write(1);
        for thread in self.threads.drain(..) {
            while !thread.is_finished() {
                // Again, as a receiver may just have begun to wait.
                self.core.sockets.iter().for_each(socket::stop);
                self.core.alarm.wake();
                std::thread::sleep(Duration::from_millis(1));
            }
            if thread.join().is_err() {
                tracing::error!("a thread of the fabric device panicked");
            }
        }
    }
}

impl Control {
    fn table(&self) -> Table {
        let mut table = Table { identities: self.identities.clone(), ..Table::default() };
        for (address, (_, peer)) in &self.peers {
            table.peers.insert(*address, peer.clone());
            for tunnel in peer.tunnels() {
                let place = self.identities.iter().position(|identity| Arc::ptr_eq(identity, &tunnel.identity));
                let Some(place) = place else { continue };
                if table.slots.len() <= tunnel.slot {
                    table.slots.resize(tunnel.slot + 1, None);
                }
                table.by_key.insert((place, tunnel.remote), tunnel.slot);
                table.slots[tunnel.slot] = Some(Slot { tunnel: tunnel.clone(), peer: peer.clone() });
            }
        }
        table
    }

    fn ports(&self) -> HashMap<u32, Arc<Port>> {
        self.networks.iter().map(|(vni, network)| (*vni, network.port.clone())).collect()
    }
}

/// Each key names one peer.
fn check_keys(peers: &BTreeMap<IpAddr, (PeerConfig, Arc<Peer>)>) -> Result<(), DeviceError> {
    let mut owners: HashMap<Key, IpAddr> = HashMap::new();
    for (address, (config, _)) in peers {
        for key in &config.public_keys {
            if let Some(other) = owners.insert(*key, *address).filter(|other| other != address) {
                return Err(DeviceError::SharedKey(*address, other));
            }
        }
    }
    Ok(())
}

/// For each address so many sockets on one port; the port that it became.
fn open_sockets(config: &Config, threads: usize) -> Result<(Vec<OwnedFd>, u16), DeviceError> {
    let mut sockets = vec![];
    let mut port = config.listen.iter().map(SocketAddr::port).find(|port| *port != 0).unwrap_or(0);
    for listen in &config.listen {
        let mut address = SocketAddr::new(listen.ip(), port);
        let fail = |source| DeviceError::Bind { address, source };
        // Not shared at first: another program's socket on the port must not go unnoticed.
        let alone = socket::bind(address, false, config.offload.udp_gro).map_err(fail)?;
        port = socket::local_address(&alone).map_err(fail)?.port();
        address.set_port(port);
        if threads == 1 {
            sockets.push(alone);
            continue;
        }
        drop(alone);
        for _ in 0..threads {
            let fail = |source| DeviceError::Bind { address, source };
            sockets.push(socket::bind(address, true, config.offload.udp_gro).map_err(fail)?);
        }
    }
    Ok((sockets, port))
}
