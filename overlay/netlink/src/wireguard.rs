//! Configuration of kernel WireGuard devices over generic netlink (include/uapi/linux/wireguard.h).
//!
//! Encoding and decoding follow the header and are compared with bytes laid out by hand; `make test-vm` proves them on a
//! kernel that has WireGuard.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Attribute, Batch, Malformed, Message, Writer};
use crate::socket::{Protocol, Socket};
use crate::types::{Prefix, family};

/// Bytes of peers in one message; an attribute holds 65,535.
const PEERS_PER_MESSAGE: usize = 32 << 10;

/// A private, public or shared key. Shows nothing of itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

/// What a device is to be like.
#[derive(Debug, Clone, Default)]
pub struct DeviceSettings {
    /// Its own key; `None` keeps the one it has.
    pub private_key: Option<Key>,
    /// UDP port; `None` keeps it.
    pub port: Option<u16>,
    /// Mark of what it sends; `None` keeps it.
    pub mark: Option<u32>,
    /// Whether peers that are not among `peers` go.
    pub replace_peers: bool,
    /// Peers to be made, changed or removed.
    pub peers: Vec<PeerSettings>,
}

/// What a peer is to be like.
#[derive(Debug, Clone)]
pub struct PeerSettings {
    /// Who it is.
    pub public_key: Key,
    /// It is to go; the rest does not matter.
    pub remove: bool,
    /// A second secret; `None` keeps what there is.
    pub preshared_key: Option<Key>,
    /// Where it was last; `None` keeps it.
    pub endpoint: Option<SocketAddr>,
    /// How often something is sent, to keep middle boxes open; `None` keeps it, zero is never.
    pub keepalive: Option<Duration>,
    /// What it may send from, and what is sent to it: all of it, in place of what there was.
    pub allowed: Vec<Prefix>,
}

impl PeerSettings {
    /// A peer to be made, without an endpoint.
    pub fn new(public_key: Key, allowed: Vec<Prefix>) -> Self {
        Self { public_key, remove: false, preshared_key: None, endpoint: None, keepalive: None, allowed }
    }
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// `None`: it has no key yet.
    pub public_key: Option<Key>,
    /// UDP port.
    pub port: u16,
    /// Its peers.
    pub peers: Vec<Peer>,
}

/// A peer as it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Who it is.
    pub public_key: Key,
    /// Where it was last.
    pub endpoint: Option<SocketAddr>,
    /// Time of the last handshake since 1970; `None`: there was none.
    pub last_handshake: Option<Duration>,
    /// Bytes received from it.
    pub rx_bytes: u64,
    /// Bytes sent to it.
    pub tx_bytes: u64,
    /// How often something is sent to it; zero: never.
    pub keepalive: Duration,
    /// What it may send from.
    pub allowed: Vec<Prefix>,
}

/// Kernel WireGuard of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Wireguard {
    socket: Mutex<Socket>,
    family: u16,
}

impl Wireguard {
    /// Opens it in the calling thread's network namespace.
    ///
    /// # Errors
    /// [`NetlinkError::is_absent`] where the kernel has no WireGuard.
    pub fn open_here() -> Result<Self, NetlinkError> {
        let action = "find kernel WireGuard";
        let mut socket = Socket::open(Protocol::Generic)?;
        let mut request = Batch::new();
        request.message(GENL_ID_CTRL, 0, |message| {
            message.raw(&[CTRL_CMD_GETFAMILY, 1, 0, 0]);
            message.string(CTRL_ATTR_FAMILY_NAME, "wireguard");
        });
        let family = socket.get(&request, parse_family).map_err(|error| error.into_error(action))?;
        let family = family.flatten().ok_or_else(|| NetlinkError::NoAnswer { action: action.to_owned() })?;
        Ok(Self { socket: Mutex::new(socket), family })
    }

    /// Changes a device.
    pub fn configure(&self, device: &str, settings: &DeviceSettings) -> Result<(), NetlinkError> {
        let action = format!("configure WireGuard device {device}");
        let batch = encode(self.family, device, settings);
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = socket.send(&batch).map_err(|error| error.into_error(action.clone()))?;
        refusals.into_iter().next().map_or(Ok(()), |refusal| Err(refusal.into_error(action)))
    }

    /// Reads a device and all its peers.
    pub fn device(&self, device: &str) -> Result<Device, NetlinkError> {
        let mut request = Batch::new();
        request.message(self.family, 0, |message| {
            message.raw(&[WG_CMD_GET_DEVICE, WG_GENL_VERSION, 0, 0]);
            message.string(WGDEVICE_A_IFNAME, device);
        });
        let mut socket = self.socket.lock().unwrap_or_else(PoisonError::into_inner);
        let found = socket.dump(&request, |found: &mut Device, message| parse_device(found, message));
        found.map_err(|error| error.into_error(format!("read WireGuard device {device}")))
    }
}

pub(crate) fn parse_family(message: Message<'_>) -> Result<Option<u16>, Malformed> {
    for attribute in message.split(4)?.1 {
        let attribute = attribute?;
        if attribute.kind == CTRL_ATTR_FAMILY_ID {
            return attribute.u16().map(Some);
        }
    }
    Ok(None)
}

/// As many messages as the peers need: only the first one changes the device itself.
fn encode(family: u16, device: &str, settings: &DeviceSettings) -> Batch {
    let mut batch = Batch::new();
    let mut peers = settings.peers.iter().peekable();
    let mut first = true;
    while first || peers.peek().is_some() {
        batch.message(family, 0, |message| {
            message.raw(&[WG_CMD_SET_DEVICE, WG_GENL_VERSION, 0, 0]);
            message.string(WGDEVICE_A_IFNAME, device);
            if first {
                encode_device(message, settings);
            }
            message.nested(WGDEVICE_A_PEERS, |list| {
                let start = list.position();
                let mut index = 0;
                while list.position() - start < PEERS_PER_MESSAGE {
                    let Some(peer) = peers.next() else { break };
                    list.nested(index, |nest| encode_peer(nest, peer));
                    index += 1;
                }
            });
        });
        first = false;
    }
    batch
}

fn encode_device(message: &mut Writer<'_>, settings: &DeviceSettings) {
    if let Some(key) = settings.private_key {
        message.bytes(WGDEVICE_A_PRIVATE_KEY, &key.0);
    }
    if settings.replace_peers {
        message.u32(WGDEVICE_A_FLAGS, WGDEVICE_F_REPLACE_PEERS);
    }
    if let Some(port) = settings.port {
        message.u16(WGDEVICE_A_LISTEN_PORT, port);
    }
    if let Some(mark) = settings.mark {
        message.u32(WGDEVICE_A_FWMARK, mark);
    }
}

fn encode_peer(message: &mut Writer<'_>, peer: &PeerSettings) {
    message.bytes(WGPEER_A_PUBLIC_KEY, &peer.public_key.0);
    if peer.remove {
        return message.u32(WGPEER_A_FLAGS, WGPEER_F_REMOVE_ME);
    }
    message.u32(WGPEER_A_FLAGS, WGPEER_F_REPLACE_ALLOWEDIPS);
    if let Some(key) = peer.preshared_key {
        message.bytes(WGPEER_A_PRESHARED_KEY, &key.0);
    }
    if let Some(endpoint) = peer.endpoint {
        message.bytes(WGPEER_A_ENDPOINT, &encode_endpoint(endpoint));
    }
    if let Some(keepalive) = peer.keepalive {
        let seconds = u16::try_from(keepalive.as_secs()).unwrap_or(u16::MAX);
        message.u16(WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL, seconds);
    }
    message.nested(WGPEER_A_ALLOWEDIPS, |list| {
        for prefix in &peer.allowed {
            list.nested(0, |nest| {
                nest.u16(WGALLOWEDIP_A_FAMILY, u16::from(family(prefix.address)));
                nest.ip(WGALLOWEDIP_A_IPADDR, prefix.network());
                nest.u8(WGALLOWEDIP_A_CIDR_MASK, prefix.length);
            });
        }
    });
}

/// `struct sockaddr_in` or `sockaddr_in6`.
fn encode_endpoint(endpoint: SocketAddr) -> Vec<u8> {
    let mut bytes = u16::from(family(endpoint.ip())).to_ne_bytes().to_vec();
    bytes.extend_from_slice(&endpoint.port().to_be_bytes());
    match endpoint {
        SocketAddr::V4(v4) => {
            bytes.extend_from_slice(&v4.ip().octets());
            bytes.extend_from_slice(&[0; 8]);
        }
        SocketAddr::V6(v6) => {
            bytes.extend_from_slice(&v6.flowinfo().to_ne_bytes());
            bytes.extend_from_slice(&v6.ip().octets());
            bytes.extend_from_slice(&v6.scope_id().to_ne_bytes());
        }
    }
    bytes
}

fn decode_endpoint(bytes: &[u8]) -> Result<SocketAddr, Malformed> {
    let malformed = Malformed("an endpoint is no socket address");
    let (&[f0, f1, p0, p1], rest) = bytes.split_first_chunk::<4>().ok_or(malformed)?;
    let port = u16::from_be_bytes([p0, p1]);
    let family = u16::from_ne_bytes([f0, f1]);
    if family == u16::from(AF_INET) && rest.len() == 12 {
        let (octets, _) = rest.split_first_chunk::<4>().ok_or(malformed)?;
        return Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::from(*octets)), port));
    }
    if family == u16::from(AF_INET6) && rest.len() == 24 {
        let (octets, _) = rest[4..].split_first_chunk::<16>().ok_or(malformed)?;
        return Ok(SocketAddr::new(IpAddr::V6(Ipv6Addr::from(*octets)), port));
    }
    Err(malformed)
}

/// Reads one message of a device's dump. A peer with many addresses is spread over several, under the same key.
pub(crate) fn parse_device(device: &mut Device, message: Message<'_>) -> Result<(), Malformed> {
    for attribute in message.split(4)?.1 {
        let attribute = attribute?;
        match attribute.kind {
            WGDEVICE_A_PUBLIC_KEY => device.public_key = Some(key(attribute)?),
            WGDEVICE_A_LISTEN_PORT => device.port = attribute.u16()?,
            WGDEVICE_A_PEERS => {
                for nest in attribute.nested() {
                    let peer = parse_peer(nest?)?;
                    match device.peers.last_mut() {
                        Some(last) if last.public_key == peer.public_key => last.allowed.extend(peer.allowed),
                        _ => device.peers.push(peer),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn parse_peer(nest: Attribute<'_>) -> Result<Peer, Malformed> {
    let (mut public_key, mut endpoint, mut last_handshake) = (None, None, None);
    let (mut rx_bytes, mut tx_bytes, mut allowed) = (0, 0, Vec::new());
    let mut keepalive = Duration::ZERO;
    for attribute in nest.nested() {
        let attribute = attribute?;
        match attribute.kind {
            WGPEER_A_PUBLIC_KEY => public_key = Some(key(attribute)?),
            WGPEER_A_ENDPOINT => endpoint = Some(decode_endpoint(attribute.payload)?),
            WGPEER_A_LAST_HANDSHAKE_TIME => last_handshake = handshake(attribute.payload)?,
            WGPEER_A_RX_BYTES => rx_bytes = attribute.u64()?,
            WGPEER_A_TX_BYTES => tx_bytes = attribute.u64()?,
            WGPEER_A_PERSISTENT_KEEPALIVE_INTERVAL => keepalive = Duration::from_secs(attribute.u16()?.into()),
            WGPEER_A_ALLOWEDIPS => {
                for nest in attribute.nested() {
                    allowed.push(parse_allowed(nest?)?);
                }
            }
            _ => {}
        }
    }
    let public_key = public_key.ok_or(Malformed("a peer lacks its key"))?;
    Ok(Peer { public_key, endpoint, last_handshake, rx_bytes, tx_bytes, keepalive, allowed })
}

fn parse_allowed(nest: Attribute<'_>) -> Result<Prefix, Malformed> {
    let (mut address, mut length) = (None, None);
    for attribute in nest.nested() {
        let attribute = attribute?;
        match attribute.kind {
            WGALLOWEDIP_A_IPADDR => address = Some(attribute.ip()?),
            WGALLOWEDIP_A_CIDR_MASK => length = Some(attribute.u8()?),
            _ => {}
        }
    }
    address.zip(length).and_then(|(address, length)| Prefix::new(address, length)).ok_or(Malformed("no prefix"))
}

/// `struct __kernel_timespec`: seconds and nanoseconds, zero for never.
fn handshake(bytes: &[u8]) -> Result<Option<Duration>, Malformed> {
    let malformed = Malformed("a time is out of range");
    let (seconds, rest) = bytes.split_first_chunk::<8>().ok_or(malformed)?;
    let nanoseconds: [u8; 8] = rest.try_into().map_err(|_| malformed)?;
    let seconds = u64::try_from(i64::from_ne_bytes(*seconds)).map_err(|_| malformed)?;
    let nanoseconds = u32::try_from(i64::from_ne_bytes(nanoseconds)).map_err(|_| malformed)?;
    if nanoseconds >= 1_000_000_000 {
        return Err(malformed);
    }
    Ok((seconds != 0).then(|| Duration::new(seconds, nanoseconds)))
}

fn key(attribute: Attribute<'_>) -> Result<Key, Malformed> {
    attribute.payload.try_into().map(Key).map_err(|_| Malformed("a key has no 32 bytes"))
}

#[cfg(test)]
#[path = "wireguard_test.rs"]
mod tests;
