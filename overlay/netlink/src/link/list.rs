//! The devices that there are.

use std::net::IpAddr;

use super::{checked_name, header};
use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Attribute, Batch, Malformed, Message};
use crate::rtnetlink::Rtnetlink;
use crate::types::MacAddress;

/// A device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its kind as the kernel names it; `None` for `lo` and hardware.
    pub kind: Option<String>,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// `None` for devices without Ethernet.
    pub mac: Option<MacAddress>,
    /// Set to be up.
    pub up: bool,
    /// Up and connected (RFC 2863: `up`, or `unknown` for devices that cannot tell).
    pub operational: bool,
    /// The bridge that it is a port of.
    pub master: Option<u32>,
    /// Whether its bridge forwards through it. That begins a moment after both ends of a pair are up, under load some
    /// hundred milliseconds (the kernel's linkwatch); until then frames are lost.
    pub forwarding: bool,
    /// The number of its veth peer or macvlan parent, in the namespace where that is.
    pub parent: Option<u32>,
    /// Whether that is another namespace.
    pub parent_elsewhere: bool,
    /// What makes a VXLAN device that one.
    pub vxlan: Option<VxlanLink>,
    /// What went through it.
    pub statistics: Statistics,
}

/// What makes a VXLAN device that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct VxlanLink {
    /// The network's number.
    pub id: u32,
    /// UDP port.
    pub port: u16,
    /// Where tunnelled packets come from.
    pub local: Option<IpAddr>,
}

/// What went through a device since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[expect(missing_docs, reason = "as struct rtnl_link_stats64 names them")]
pub struct Statistics {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

impl Rtnetlink {
    /// All devices.
    pub fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        self.dump("list devices", RTM_GETLINK, |message| message.raw(&header(0, 0, 0)), parse)
    }

    /// The device of a name; `None` where there is none.
    pub fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let action = format!("look up device {name}");
        let mut request = Batch::new();
        checked_name(name, &action)?;
        request.message(RTM_GETLINK, 0, |message| {
            message.raw(&header(0, 0, 0));
            message.string(IFLA_IFNAME, name);
        });
        match self.socket().get(&request, parse).map_err(|error| error.into_error(action)) {
            Err(error) if error.is_absent() => Ok(None),
            found => found.map(Option::flatten),
        }
    }
}

/// Reads an `RTM_NEWLINK`; `None` for any other message.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<Link>, Malformed> {
    if message.kind != RTM_NEWLINK {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(16)?;
    let word = |at: usize| {
        let bytes = fixed.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u32::from_ne_bytes).ok_or(Malformed("a link is too short"))
    };
    let mut link = Link { index: word(4)?, up: word(8)? & IFF_UP != 0, ..Link::default() };
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_IFNAME => link.name = attribute.string()?,
            IFLA_MTU => link.mtu = attribute.u32()?,
            // Tunnels have addresses of other lengths.
            IFLA_ADDRESS => link.mac = attribute.mac().ok(),
            IFLA_MASTER => link.master = Some(attribute.u32()?),
            IFLA_LINK => link.parent = Some(attribute.u32()?).filter(|parent| *parent != 0),
            IFLA_LINK_NETNSID => link.parent_elsewhere = true,
            // IF_OPER_UNKNOWN and IF_OPER_UP.
            IFLA_OPERSTATE => link.operational = link.up && matches!(attribute.u8()?, 0 | 6),
            IFLA_STATS64 => link.statistics = statistics(attribute),
            IFLA_LINKINFO => info(attribute, &mut link)?,
            _ => {}
        }
    }
    Ok(Some(link))
}

fn info(attribute: Attribute<'_>, link: &mut Link) -> Result<(), Malformed> {
    let (mut data, mut port_kind, mut port) = (None, None, None);
    for attribute in attribute.nested() {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_INFO_KIND => link.kind = Some(attribute.string()?),
            IFLA_INFO_DATA => data = Some(attribute),
            IFLA_INFO_SLAVE_KIND => port_kind = Some(attribute.string()?),
            IFLA_INFO_SLAVE_DATA => port = Some(attribute),
            _ => {}
        }
    }
    if let (Some("bridge"), Some(port)) = (port_kind.as_deref(), port) {
        for attribute in port.nested() {
            let attribute = attribute?;
            if attribute.kind == IFLA_BRPORT_STATE {
                // BR_STATE_FORWARDING.
                link.forwarding = attribute.u8()? == 3;
            }
        }
    }
    let (Some("vxlan"), Some(data)) = (link.kind.as_deref(), data) else { return Ok(()) };
    let mut vxlan = VxlanLink::default();
    for attribute in data.nested() {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_VXLAN_ID => vxlan.id = attribute.u32()?,
            IFLA_VXLAN_PORT => vxlan.port = attribute.be16()?,
            IFLA_VXLAN_LOCAL | IFLA_VXLAN_LOCAL6 => {
                vxlan.local = Some(attribute.ip()?).filter(|local| !local.is_unspecified());
            }
            _ => {}
        }
    }
    link.vxlan = Some(vxlan);
    Ok(())
}

/// The first fields of `struct rtnl_link_stats64`; those that a kernel does not send are zero.
fn statistics(attribute: Attribute<'_>) -> Statistics {
    let field = |at: usize| {
        let bytes = attribute.payload.get(at * 8..at * 8 + 8).and_then(|bytes| bytes.try_into().ok());
        bytes.map(u64::from_ne_bytes).unwrap_or_default()
    };
    Statistics {
        rx_packets: field(0),
        tx_packets: field(1),
        rx_bytes: field(2),
        tx_bytes: field(3),
        rx_errors: field(4),
        tx_errors: field(5),
        rx_dropped: field(6),
        tx_dropped: field(7),
    }
}
