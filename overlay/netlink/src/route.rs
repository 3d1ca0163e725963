//! Routes (`ip route`).

use std::fmt;
use std::net::IpAddr;

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Malformed, Message, Writer};
use crate::rtnetlink::{Changes, Rtnetlink};
use crate::types::Prefix;

/// A route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Packets to where.
    pub destination: Prefix,
    /// What becomes of them.
    pub target: Target,
    /// Its table; 254 is the main one.
    pub table: u32,
    /// The smallest counts (`metric`). `None`: the kernel's default, 0 for IPv4 and 1,024 for IPv6.
    pub priority: Option<u32>,
    /// Source of packets that have none yet.
    pub source: Option<IpAddr>,
    /// Largest packet in bytes, where that is less than the device's.
    pub mtu: Option<u32>,
}

/// What becomes of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Their destinations are on a device's own network.
    Device(u32),
    /// They go to a gateway.
    Gateway {
        /// Its address.
        address: IpAddr,
        /// The device; `None`: the one that reaches the gateway.
        device: Option<u32>,
        /// The gateway is taken to be on that device, whatever the routes say.
        onlink: bool,
    },
    /// They are dropped, and the sender learns nothing.
    Blackhole,
    /// They are refused.
    Unreachable,
    /// They are for this host. Only read.
    Local,
    /// Anything else. Only read.
    Other,
}

impl Route {
    /// To a gateway, in the main table.
    pub fn gateway(destination: Prefix, address: IpAddr) -> Self {
        Self::new(destination, Target::Gateway { address, device: None, onlink: false })
    }

    /// In the main table.
    pub fn new(destination: Prefix, target: Target) -> Self {
        Self { destination, target, table: RT_TABLE_MAIN, priority: None, source: None, mtu: None }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.destination)?;
        match self.target {
            Target::Device(device) => write!(f, " on device number {device}")?,
            Target::Gateway { address, .. } => write!(f, " via {address}")?,
            Target::Blackhole => f.write_str(" (blackhole)")?,
            Target::Unreachable => f.write_str(" (unreachable)")?,
            Target::Local => f.write_str(" (local)")?,
            Target::Other => {}
        }
        if self.table == RT_TABLE_MAIN { Ok(()) } else { write!(f, " in table {}", self.table) }
    }
}

impl Changes {
    /// Adds a route; refused where there is one with the same destination, table and priority.
    pub fn add_route(&mut self, route: &Route) {
        self.route("add", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_EXCL, route);
    }

    /// Adds a route in place of the one with the same destination, table and priority, if there is one.
    pub fn replace_route(&mut self, route: &Route) {
        self.route("replace", RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE, route);
    }

    /// Deletes a route.
    pub fn delete_route(&mut self, route: &Route) {
        self.route("delete", RTM_DELROUTE, 0, route);
    }

    fn route(&mut self, verb: &str, kind: u16, flags: u16, route: &Route) {
        let action = format!("{verb} route {route}");
        if matches!(route.target, Target::Local | Target::Other) {
            let problem = "routes of this kind are the kernel's own".to_owned();
            return self.reject(NetlinkError::Invalid { action, problem });
        }
        self.push(action, kind, flags, |message| write(message, route, kind == RTM_DELROUTE));
    }
}

fn write(message: &mut Writer<'_>, route: &Route, delete: bool) {
    let (kind, scope, flags) = match route.target {
        Target::Device(_) => (RTN_UNICAST, RT_SCOPE_LINK, 0),
        Target::Gateway { onlink, .. } => (RTN_UNICAST, RT_SCOPE_UNIVERSE, if onlink { RTNH_F_ONLINK } else { 0 }),
        Target::Blackhole => (RTN_BLACKHOLE, RT_SCOPE_UNIVERSE, 0),
        _ => (RTN_UNREACHABLE, RT_SCOPE_UNIVERSE, 0),
    };
    // IPv6 has no scopes. A route is deleted whoever made it.
    let scope = if route.destination.address.is_ipv6() { RT_SCOPE_UNIVERSE } else { scope };
    let protocol = if delete { RTPROT_UNSPEC } else { RTPROT_STATIC };
    message.raw(&header(route.destination.family(), route.destination.length, [protocol, scope, kind], flags));
    message.ip(RTA_DST, route.destination.network());
    message.u32(RTA_TABLE, route.table);
    match route.target {
        Target::Device(device) => message.u32(RTA_OIF, device),
        Target::Gateway { address, device, .. } => {
            message.ip(RTA_GATEWAY, address);
            if let Some(device) = device {
                message.u32(RTA_OIF, device);
            }
        }
        _ => {}
    }
    if let Some(priority) = route.priority {
        message.u32(RTA_PRIORITY, priority);
    }
    if let Some(source) = route.source {
        message.ip(RTA_PREFSRC, source);
    }
    if let Some(mtu) = route.mtu {
        message.nested(RTA_METRICS, |metrics| metrics.u32(RTAX_MTU, mtu));
    }
}

/// `struct rtmsg`. The table follows as an attribute, as it may be more than a byte.
fn header(family: u8, length: u8, [protocol, scope, kind]: [u8; 3], flags: u32) -> [u8; 12] {
    let [a, b, c, d] = flags.to_ne_bytes();
    [family, length, 0, 0, 0, protocol, scope, kind, a, b, c, d]
}

impl Rtnetlink {
    /// All routes of both families and all tables, those of the kernel too.
    pub fn routes(&self) -> Result<Vec<Route>, NetlinkError> {
        self.dump("list routes", RTM_GETROUTE, |message| message.raw(&header(AF_UNSPEC, 0, [0; 3], 0)), parse)
    }
}

/// Reads an `RTM_NEWROUTE`; `None` for any other message, and for what is a copy of another route.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<Route>, Malformed> {
    if message.kind != RTM_NEWROUTE {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(12)?;
    let &[family, length, _, _, table, _, _, kind, a, b, c, d] = fixed else {
        return Err(Malformed("a route is too short"));
    };
    let flags = u32::from_ne_bytes([a, b, c, d]);
    if flags & RTM_F_CLONED != 0 || !matches!(family, AF_INET | AF_INET6) {
        return Ok(None);
    }
    let default = if family == AF_INET { Prefix::DEFAULT_V4 } else { Prefix::DEFAULT_V6 };
    let mut route = Route::new(default, Target::Other);
    route.table = u32::from(table);
    let (mut destination, mut gateway, mut device) = (default.address, None, None);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            RTA_DST => destination = attribute.ip()?,
            RTA_GATEWAY => gateway = Some(attribute.ip()?),
            RTA_OIF => device = Some(attribute.u32()?),
            RTA_TABLE => route.table = attribute.u32()?,
            RTA_PRIORITY => route.priority = Some(attribute.u32()?),
            RTA_PREFSRC => route.source = Some(attribute.ip()?),
            RTA_METRICS => {
                for metric in attribute.nested() {
                    let metric = metric?;
                    if metric.kind == RTAX_MTU {
                        route.mtu = Some(metric.u32()?);
                    }
                }
            }
            _ => {}
        }
    }
    route.destination = Prefix::new(destination, length).ok_or(Malformed("a prefix is too long"))?;
    route.target = match (kind, gateway, device) {
        (RTN_UNICAST, Some(address), device) => Target::Gateway { address, device, onlink: flags & RTNH_F_ONLINK != 0 },
        (RTN_UNICAST, None, Some(device)) => Target::Device(device),
        (RTN_BLACKHOLE, ..) => Target::Blackhole,
        (RTN_UNREACHABLE, ..) => Target::Unreachable,
        (RTN_LOCAL, ..) => Target::Local,
        _ => Target::Other,
    };
    Ok(Some(route))
}
