//! Neighbours: static ARP and ND entries (`ip neigh`), and forwarding entries of VXLAN devices and bridges (`bridge
//! fdb`).
//!
//! Made for tables of ten thousands: a change carries its entries as they are, is sent 400 at a time, and its error
//! names the entry.

use std::fmt;
use std::net::IpAddr;

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Batch, Malformed, Message, Writer};
use crate::rtnetlink::Rtnetlink;
use crate::types::{MacAddress, family};

/// Where a host's address leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Neighbour {
    /// An IP address is at an Ethernet address.
    Host {
        /// Of this device.
        device: u32,
        /// The IP address.
        address: IpAddr,
        /// Where it is.
        mac: MacAddress,
    },
    /// Frames to an Ethernet address go through a VXLAN's tunnel to another host. All zeroes: frames to unknown
    /// addresses, to groups and to all.
    Tunnel {
        /// The VXLAN device.
        device: u32,
        /// The Ethernet address.
        mac: MacAddress,
        /// The other host, in the underlay.
        remote: IpAddr,
    },
    /// Frames to an Ethernet address leave by a bridge's port.
    Port {
        /// The port.
        device: u32,
        /// The Ethernet address.
        mac: MacAddress,
    },
}

impl fmt::Display for Neighbour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host { device, address, mac } => write!(f, "{address} at {mac} on device number {device}"),
            Self::Tunnel { device, mac, remote } => write!(f, "{mac} behind {remote} on device number {device}"),
            Self::Port { device, mac } => write!(f, "{mac} behind port number {device}"),
        }
    }
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighbourChange {
    /// It is to be there, in place of another with the same key. (Of a tunnel's all-zero entries there can be several,
    /// one for each remote.)
    Put(Neighbour),
    /// It is to go.
    Delete(Neighbour),
}

impl Neighbour {
    fn write(&self, message: &mut Writer<'_>) {
        match *self {
            Self::Host { device, address, mac } => {
                message.raw(&header(family(address), device, NUD_PERMANENT, 0));
                message.ip(NDA_DST, address);
                message.bytes(NDA_LLADDR, &mac.0);
            }
            Self::Tunnel { device, mac, remote } => {
                message.raw(&header(AF_BRIDGE, device, NUD_PERMANENT | NUD_NOARP, NTF_SELF));
                message.bytes(NDA_LLADDR, &mac.0);
                message.ip(NDA_DST, remote);
            }
            Self::Port { device, mac } => {
                // NUD_NOARP without NUD_PERMANENT: static. Permanent ones are the bridge's own addresses.
                message.raw(&header(AF_BRIDGE, device, NUD_NOARP, NTF_MASTER));
                message.bytes(NDA_LLADDR, &mac.0);
            }
        }
    }
}

/// `NTF_MASTER`.
const NTF_MASTER: u8 = 4;

/// `struct ndmsg`.
fn header(family: u8, device: u32, state: u16, flags: u8) -> [u8; 12] {
    let ([a, b, c, d], [e, f]) = (device.to_ne_bytes(), state.to_ne_bytes());
    [family, 0, 0, 0, a, b, c, d, e, f, flags, 0]
}

impl Rtnetlink {
    /// Makes changes, in order.
    ///
    /// # Errors
    /// That of the first change that was refused. The others, before and behind it, are in force. A `Delete` of what is
    /// not there is no error.
    pub fn change_neighbours(&self, changes: &[NeighbourChange]) -> Result<(), NetlinkError> {
        let mut batch = Batch::new();
        for change in changes {
            match change {
                NeighbourChange::Put(entry) => {
                    // All-zero entries are a list: replacing would leave one.
                    let list = matches!(entry, Neighbour::Tunnel { mac, .. } if mac.0 == [0; 6]);
                    let flags = if list { NLM_F_CREATE | NLM_F_APPEND } else { NLM_F_CREATE | NLM_F_REPLACE };
                    batch.message(RTM_NEWNEIGH, flags, |message| entry.write(message));
                }
                NeighbourChange::Delete(entry) => batch.message(RTM_DELNEIGH, 0, |message| entry.write(message)),
            }
        }
        let refusals = self.socket().send(&batch).map_err(|error| error.into_error("change neighbours"))?;
        for refusal in refusals {
            let (verb, entry, harmless) = match refusal.index.and_then(|index| changes.get(index)) {
                Some(NeighbourChange::Put(entry)) => ("put", Some(entry), false),
                Some(NeighbourChange::Delete(entry)) => ("delete", Some(entry), true),
                None => ("change", None, false),
            };
            let entry = entry.map(ToString::to_string).unwrap_or_default();
            let error = refusal.into_error(format!("{verb} neighbour {entry}"));
            let expected = error.is_present() || (harmless && error.is_absent());
            if !expected {
                return Err(error);
            }
        }
        Ok(())
    }

    /// All entries that were put: static ARP and ND entries, and forwarding entries that never age.
    pub fn neighbours(&self) -> Result<Vec<Neighbour>, NetlinkError> {
        let action = "list neighbours";
        let mut all = self.dump(action, RTM_GETNEIGH, |message| message.raw(&header(AF_UNSPEC, 0, 0, 0)), parse)?;
        all.extend(self.dump(action, RTM_GETNEIGH, |message| message.raw(&header(AF_BRIDGE, 0, 0, 0)), parse)?);
        Ok(all)
    }
}

/// Reads an `RTM_NEWNEIGH`; `None` for any other message and for entries of other kinds.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<Neighbour>, Malformed> {
    if message.kind != RTM_NEWNEIGH {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(12)?;
    let &[family, _, _, _, a, b, c, d, e, f, flags, _] = fixed else {
        return Err(Malformed("a neighbour is too short"));
    };
    let (device, state) = (u32::from_ne_bytes([a, b, c, d]), u16::from_ne_bytes([e, f]));
    let (mut address, mut mac, mut master) = (None, None, false);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            NDA_DST => address = Some(attribute.ip()?),
            // Devices without Ethernet have others.
            NDA_LLADDR => mac = attribute.mac().ok(),
            NDA_MASTER => master = true,
            _ => {}
        }
    }
    let Some(mac) = mac else { return Ok(None) };
    Ok(match (family, address) {
        (AF_INET | AF_INET6, Some(address)) if state & NUD_PERMANENT != 0 => {
            Some(Neighbour::Host { device, address, mac })
        }
        (AF_BRIDGE, Some(remote)) if flags & NTF_SELF != 0 && state & NUD_PERMANENT != 0 => {
            Some(Neighbour::Tunnel { device, mac, remote })
        }
        (AF_BRIDGE, None) if master && state & NUD_NOARP != 0 && state & NUD_PERMANENT == 0 => {
            Some(Neighbour::Port { device, mac })
        }
        _ => None,
    })
}
