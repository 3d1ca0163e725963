//! Network devices: make, change, delete, list.
//!
//! A device is made with all that belongs to it in one message: its namespace, its master, its state. Kinds with
//! settings of their own are in [`kind`], the settings of a bridge's ports in [`port`], reading back in [`list`].

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::Writer;
use crate::rtnetlink::Changes;
use crate::types::MacAddress;

pub mod kind;
pub mod list;
pub mod port;

pub use kind::{Bridge, LinkKind, Macvlan, Vxlan, VxlanFragment};
pub use list::{Link, Statistics, VxlanLink};
pub use port::BridgePort;

/// Longest name of a device (`IFNAMSIZ` less the zero byte).
pub const NAME_MAX: usize = 15;

/// A device to be made.
#[derive(Debug, Clone)]
pub struct NewLink<'a> {
    /// At most [`NAME_MAX`] bytes, unique in its namespace.
    pub name: String,
    /// What it is.
    pub kind: LinkKind<'a>,
    /// The number that it gets; `None`: the one after the highest that its namespace ever had, so 2 for the first
    /// device in a new one. Known beforehand, addresses and routes can follow in the same list of changes. A peer can
    /// be given one only together with the other end.
    pub index: Option<u32>,
    /// Largest packet in bytes, without the Ethernet header.
    pub mtu: Option<u32>,
    /// `None`: a random one.
    pub mac: Option<MacAddress>,
    /// The bridge that it becomes a port of, by its number in the device's namespace.
    pub master: Option<u32>,
    /// Whether it is up from the start.
    pub up: bool,
    /// Where it comes to lie; `None`: in the handle's namespace. What a VXLAN's tunnel and a macvlan's parent use is in
    /// the handle's in any case.
    pub namespace: Option<BorrowedFd<'a>>,
}

impl<'a> NewLink<'a> {
    /// A device that is down, in the handle's namespace, and takes the kernel's defaults.
    pub fn new(name: impl Into<String>, kind: LinkKind<'a>) -> Self {
        Self { name: name.into(), kind, index: None, mtu: None, mac: None, master: None, up: false, namespace: None }
    }

    /// Writes header and attributes. The peer of a veth pair is written in the same way, within the other's.
    pub(crate) fn write(&self, message: &mut Writer<'_>) {
        let up = if self.up { IFF_UP } else { 0 };
        message.raw(&header(self.index.unwrap_or(0), up, up));
        message.string(IFLA_IFNAME, &self.name);
        write_option(message, IFLA_MTU, self.mtu);
        if matches!(self.kind, LinkKind::Veth(_) | LinkKind::Peer) {
            // The kernel would make one for each CPU, and use the first.
            message.u32(IFLA_NUM_TX_QUEUES, 1);
            message.u32(IFLA_NUM_RX_QUEUES, 1);
        }
        if let Some(mac) = self.mac {
            message.bytes(IFLA_ADDRESS, &mac.0);
        }
        write_option(message, IFLA_MASTER, self.master);
        write_namespace(message, self.namespace);
        // A peer's kind is that of its pair.
        if !matches!(self.kind, LinkKind::Peer) {
            self.kind.write(message);
        }
    }

    /// Refuses names that cannot be one, and what a peer cannot have.
    fn check(&self) -> Result<(), NetlinkError> {
        let action = format!("add {} device {}", self.kind.name(), self.name);
        checked_name(&self.name, &action)?;
        match &self.kind {
            LinkKind::Veth(peer) if peer.up || peer.master.is_some() => {
                let problem = format!("its peer {} can be up and have a master only later", peer.name);
                Err(NetlinkError::Invalid { action, problem })
            }
            LinkKind::Veth(peer) if peer.index.is_some() && self.index.is_none() => {
                let problem = format!("its peer {} can have a given number only if it has one itself", peer.name);
                Err(NetlinkError::Invalid { action, problem })
            }
            LinkKind::Veth(peer) if !matches!(peer.kind, LinkKind::Peer) => {
                let problem = format!("its peer {} is said to be a {} device", peer.name, peer.kind.name());
                Err(NetlinkError::Invalid { action, problem })
            }
            LinkKind::Veth(peer) => checked_name(&peer.name, &action).map(drop),
            LinkKind::Peer => {
                let problem = "a peer is made with the other end of its pair".to_owned();
                Err(NetlinkError::Invalid { action, problem })
            }
            _ => Ok(()),
        }
    }
}

/// What is to be different about a device. `None` and `false` change nothing.
#[derive(Debug, Clone, Default)]
pub struct LinkChange<'a> {
    /// A new name. The device must be down, or the kernel newer than 6.2.
    pub name: Option<String>,
    /// Up or down.
    pub up: Option<bool>,
    /// Largest packet in bytes.
    pub mtu: Option<u32>,
    /// Its Ethernet address.
    pub mac: Option<MacAddress>,
    /// The bridge that it becomes a port of; 0: of none.
    pub master: Option<u32>,
    /// Its settings as a port. It must be one already, or become one by an earlier change.
    pub port: Option<BridgePort>,
    /// Where it goes. It is down there and has lost its addresses.
    pub namespace: Option<BorrowedFd<'a>>,
}

/// A device that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkRef {
    /// By its number.
    Index(u32),
    /// By its name.
    Name(String),
}

impl From<u32> for LinkRef {
    fn from(index: u32) -> Self {
        Self::Index(index)
    }
}

impl From<&str> for LinkRef {
    fn from(name: &str) -> Self {
        Self::Name(name.to_owned())
    }
}

impl std::fmt::Display for LinkRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Index(index) => write!(f, "number {index}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

impl LinkRef {
    fn write(&self, message: &mut Writer<'_>, flags: u32, change: u32) {
        match self {
            Self::Index(index) => message.raw(&header(*index, flags, change)),
            Self::Name(name) => {
                message.raw(&header(0, flags, change));
                message.string(IFLA_IFNAME, name);
            }
        }
    }

    fn check(&self, action: &str) -> Result<(), NetlinkError> {
        match self {
            Self::Index(0) => {
                Err(NetlinkError::Invalid { action: action.to_owned(), problem: "devices count from 1".to_owned() })
            }
            Self::Index(_) => Ok(()),
            Self::Name(name) => checked_name(name, action).map(drop),
        }
    }
}

impl Changes {
    /// Makes a device; refused where its name is taken.
    pub fn add_link(&mut self, link: &NewLink<'_>) {
        if let Err(error) = link.check() {
            return self.reject(error);
        }
        let action = format!("add {} device {}", link.kind.name(), link.name);
        self.push(action, RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, |message| link.write(message));
    }

    /// Changes a device.
    pub fn change_link(&mut self, link: impl Into<LinkRef>, change: &LinkChange<'_>) {
        let link = link.into();
        let action = format!("change device {link}");
        let names = link.check(&action).and_then(|()| match (&change.name, &link) {
            (Some(_), LinkRef::Name(_)) => Err(NetlinkError::Invalid {
                action: action.clone(),
                problem: "to rename a device takes its number".to_owned(),
            }),
            (Some(name), _) => checked_name(name, &action).map(drop),
            (None, _) => Ok(()),
        });
        if let Err(error) = names {
            return self.reject(error);
        }
        self.push(action, RTM_NEWLINK, 0, |message| {
            let (flags, mask) = match change.up {
                Some(up) => (if up { IFF_UP } else { 0 }, IFF_UP),
                None => (0, 0),
            };
            link.write(message, flags, mask);
            if let Some(name) = &change.name {
                message.string(IFLA_IFNAME, name);
            }
            write_option(message, IFLA_MTU, change.mtu);
            if let Some(mac) = change.mac {
                message.bytes(IFLA_ADDRESS, &mac.0);
            }
            write_option(message, IFLA_MASTER, change.master);
            write_namespace(message, change.namespace);
            if let Some(port) = &change.port {
                message.nested(IFLA_LINKINFO, |info| {
                    info.string(IFLA_INFO_SLAVE_KIND, "bridge");
                    info.nested(IFLA_INFO_SLAVE_DATA, |data| port.write(data));
                });
            }
        });
    }

    /// Deletes a device; of a veth pair, both ends.
    pub fn delete_link(&mut self, link: impl Into<LinkRef>) {
        let link = link.into();
        let action = format!("delete device {link}");
        match link.check(&action) {
            Err(error) => self.reject(error),
            Ok(()) => self.push(action, RTM_DELLINK, 0, |message| link.write(message, 0, 0)),
        }
    }
}

/// `struct ifinfomsg`.
pub(crate) fn header(index: u32, flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn write_option(message: &mut Writer<'_>, kind: u16, value: Option<u32>) {
    if let Some(value) = value {
        message.u32(kind, value);
    }
}

fn write_namespace(message: &mut Writer<'_>, namespace: Option<BorrowedFd<'_>>) {
    if let Some(fd) = namespace {
        message.bytes(IFLA_NET_NS_FD, &fd.as_raw_fd().to_ne_bytes());
    }
}

/// What the kernel takes as a name (`dev_valid_name`).
pub(crate) fn checked_name<'a>(name: &'a str, action: &str) -> Result<&'a str, NetlinkError> {
    let odd = |c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace();
    if name.is_empty() || name.len() > NAME_MAX || name == "." || name == ".." || name.contains(odd) {
        let problem = format!("{name:?} cannot name a device");
        return Err(NetlinkError::Invalid { action: action.to_owned(), problem });
    }
    Ok(name)
}
