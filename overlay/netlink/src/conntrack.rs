//! Connection tracking of one network namespace: counts entries, and deletes those of a backend that is gone
//! (include/uapi/linux/netfilter/nfnetlink_conntrack.h).
//!
//! An entry outlives the rule that made it: so open connections stay where they are while a backend drains. What is
//! left after its time of grace is deleted here; its next packet is then balanced anew, or refused.

use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Attribute, Attributes, Batch, Malformed, Message, Writer};
use crate::socket::{Protocol, Socket};
use crate::types::family;

/// One direction of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tuple {
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Port of the source; 0 for protocols without.
    pub source_port: u16,
    /// Port of the destination; 0 for protocols without.
    pub destination_port: u16,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Connection {
    /// As the packets that opened it looked when they came.
    pub original: Tuple,
    /// As the answers look when they come: from the backend that the connection was given.
    pub reply: Tuple,
    /// Its mark.
    pub mark: u32,
    /// What tells it from a later one between the same ends.
    id: u32,
    /// The original direction as the kernel writes it, to name it to the kernel.
    tuple: Vec<u8>,
}

/// Which entries are meant: those that match all that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Filter {
    /// Where connections were opened to: the VIP.
    pub destination: Option<IpAddr>,
    /// The port that they were opened to.
    pub destination_port: Option<u16>,
    /// Who answers: the backend.
    pub reply_source: Option<IpAddr>,
    /// IP protocol number.
    pub protocol: Option<u8>,
}

/// Filters that the kernel looks for one after the other, before one list of all entries is cheaper.
const FILTERS: usize = 16;

impl Filter {
    /// Whether the kernel can be asked for it: an address says of which family connections are, a protocol what ports are.
    /// Of IPv6 addresses it takes all but the one that is meant (`ctnetlink_filter_match_tuple`, at least up to 6.18).
    fn is_whole(&self) -> bool {
        let addresses = [self.destination, self.reply_source];
        let mut addresses = addresses.iter().flatten().peekable();
        let v4 = addresses.peek().is_some() && addresses.all(|address| address.is_ipv4());
        v4 && (self.destination_port.is_none() || self.protocol.is_some())
    }

    /// As the kernel takes it.
    fn write(&self, message: &mut Writer<'_>) {
        let address = self.destination.or(self.reply_source);
        message.raw(&[address.map_or(AF_UNSPEC, family), 0, 0, 0]);
        let nested = |kind: u16| kind | 1 << 15;
        let (mut original, mut reply) = (0, 0);
        if self.destination.is_some() || self.protocol.is_some() {
            message.nested(nested(CTA_TUPLE_ORIG), |tuple| {
                if let Some(address) = self.destination {
                    original |= CTA_FILTER_F_CTA_IP_DST;
                    let kind = if address.is_ipv4() { CTA_IP_V4_DST } else { CTA_IP_V6_DST };
                    tuple.nested(nested(CTA_TUPLE_IP), |ip| ip.ip(kind, address));
                }
                if let Some(protocol) = self.protocol {
                    original |= CTA_FILTER_F_CTA_PROTO_NUM;
                    tuple.nested(nested(CTA_TUPLE_PROTO), |proto| {
                        proto.u8(CTA_PROTO_NUM, protocol);
                        if let Some(port) = self.destination_port {
                            original |= CTA_FILTER_F_CTA_PROTO_DST_PORT;
                            proto.be16(CTA_PROTO_DST_PORT, port);
                        }
                    });
                }
            });
        }
        if let Some(address) = self.reply_source {
            reply |= CTA_FILTER_F_CTA_IP_SRC;
            let kind = if address.is_ipv4() { CTA_IP_V4_SRC } else { CTA_IP_V6_SRC };
            message.nested(nested(CTA_TUPLE_REPLY), |tuple| {
                tuple.nested(nested(CTA_TUPLE_IP), |ip| ip.ip(kind, address));
            });
        }
        message.nested(nested(CTA_FILTER), |filter| {
            filter.u32(CTA_FILTER_ORIG_FLAGS, original);
            filter.u32(CTA_FILTER_REPLY_FLAGS, reply);
        });
    }

    /// Whether it means this one.
    pub fn matches(&self, connection: &Connection) -> bool {
        let (original, reply) = (&connection.original, &connection.reply);
        self.destination.is_none_or(|wanted| wanted == original.destination)
            && self.destination_port.is_none_or(|wanted| wanted == original.destination_port)
            && self.reply_source.is_none_or(|wanted| wanted == reply.source)
            && self.protocol.is_none_or(|wanted| wanted == original.protocol)
    }
}

/// Connection tracking of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Conntrack {
    socket: Arc<Mutex<Socket>>,
}

impl Conntrack {
    /// Opens it in the calling thread's network namespace.
    pub fn open_here() -> Result<Self, NetlinkError> {
        Ok(Self::sharing(Arc::new(Mutex::new(Socket::open(Protocol::Netfilter)?))))
    }

    /// Takes over the handle of another process, by its descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetlinkError> {
        Ok(Self::sharing(Arc::new(Mutex::new(Socket::from_fd(fd, Protocol::Netfilter)?))))
    }

    /// By a socket that others use too.
    pub(crate) fn sharing(socket: Arc<Mutex<Socket>>) -> Self {
        Self { socket }
    }

    /// The descriptor, to be handed to another process that takes over. Both must not use it at the same time.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.socket().try_clone_fd()
    }

    /// How many entries there are, of all families.
    pub fn count(&self) -> Result<u32, NetlinkError> {
        let action = "count connections";
        let mut request = Batch::new();
        request.message(kind(IPCTNL_MSG_CT_GET_STATS), 0, |message| message.raw(&[AF_UNSPEC, 0, 0, 0]));
        let count = self.socket().get(&request, |message| {
            for attribute in message.split(4)?.1 {
                let attribute = attribute?;
                if attribute.kind == CTA_STATS_GLOBAL_ENTRIES {
                    return attribute.be32();
                }
            }
            Err(Malformed("the count is missing"))
        });
        let count = count.map_err(|error| error.into_error(action))?;
        count.ok_or_else(|| NetlinkError::NoAnswer { action: action.to_owned() })
    }

    /// The entries that match.
    ///
    /// The kernel walks its one table of all namespaces for it: milliseconds, whatever is found. A namespace without
    /// any entries is not worth that, and costs microseconds.
    pub fn list(&self, filter: &Filter) -> Result<Vec<Connection>, NetlinkError> {
        if self.count()? == 0 {
            return Ok(Vec::new());
        }
        let mut request = Batch::new();
        let of = [filter.destination, filter.reply_source].into_iter().flatten().next().map_or(AF_UNSPEC, family);
        request.message(kind(IPCTNL_MSG_CT_GET), 0, |message| message.raw(&[of, 0, 0, 0]));
        let found = self.socket().dump(&request, |found: &mut Vec<Connection>, message| {
            found.extend(parse(message)?.filter(|connection| filter.matches(connection)));
            Ok(())
        });
        found.map_err(|error| error.into_error("list connections"))
    }

    /// Deletes the entries that match, and returns how many they were. One that ends by itself meanwhile does not
    /// count.
    pub fn delete(&self, filter: &Filter) -> Result<usize, NetlinkError> {
        self.delete_these(&self.list(filter)?)
    }

    /// Deletes the entries that match any of these filters, by the kernel itself where that can. A namespace
    /// without entries costs microseconds.
    ///
    /// # Errors
    /// Refuses a filter that matches everything.
    pub fn forget(&self, filters: &[Filter]) -> Result<(), NetlinkError> {
        let action = "forget connections";
        if filters.contains(&Filter::default()) {
            let problem = "a filter is for some of them".to_owned();
            return Err(NetlinkError::Invalid { action: action.to_owned(), problem });
        }
        if filters.is_empty() || self.count()? == 0 {
            return Ok(());
        }
        if filters.len() <= FILTERS && filters.iter().all(Filter::is_whole) {
            let mut batch = Batch::new();
            for filter in filters {
                batch.message(kind(IPCTNL_MSG_CT_DELETE), 0, |message| filter.write(message));
            }
            // An older kernel takes the same message for the name of one connection, half of which is missing.
            if self.socket().send(&batch).map_err(|error| error.into_error(action))?.is_empty() {
                return Ok(());
            }
        }
        let mut found = self.list(&Filter::default())?;
        found.retain(|connection| filters.iter().any(|filter| filter.matches(connection)));
        self.delete_these(&found).map(drop)
    }

    fn delete_these(&self, connections: &[Connection]) -> Result<usize, NetlinkError> {
        let mut batch = Batch::new();
        for connection in connections {
            batch.message(kind(IPCTNL_MSG_CT_DELETE), 0, |message| write(message, connection));
        }
        let mut deleted = connections.len();
        for refusal in self.socket().send(&batch).map_err(|error| error.into_error("delete connections"))? {
            let to = refusal.index.and_then(|index| connections.get(index)).map(|found| found.original.destination);
            let to = to.map(|to| to.to_string()).unwrap_or_default();
            let error = refusal.into_error(format!("delete a connection to {to}"));
            if !error.is_absent() {
                return Err(error);
            }
            deleted -= 1;
        }
        Ok(deleted)
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_CTNETLINK << 8 | message
}

fn write(message: &mut Writer<'_>, connection: &Connection) {
    message.raw(&[family(connection.original.source), 0, 0, 0]);
    message.bytes(CTA_TUPLE_ORIG | 1 << 15, &connection.tuple);
    message.be32(CTA_ID, connection.id);
}

/// Reads an entry; `None` for any other message.
pub(crate) fn parse(message: Message<'_>) -> Result<Option<Connection>, Malformed> {
    if message.kind != kind(IPCTNL_MSG_CT_NEW) {
        return Ok(None);
    }
    let (mut original, mut reply, mut mark, mut id, mut raw) = (None, None, 0, 0, &[][..]);
    for attribute in message.split(4)?.1 {
        let attribute = attribute?;
        match attribute.kind {
            CTA_TUPLE_ORIG => {
                original = Some(parse_tuple(attribute)?);
                raw = attribute.payload;
            }
            CTA_TUPLE_REPLY => reply = Some(parse_tuple(attribute)?),
            CTA_MARK => mark = attribute.be32()?,
            CTA_ID => id = attribute.be32()?,
            _ => {}
        }
    }
    let both = original.zip(reply).ok_or(Malformed("a connection lacks a direction"))?;
    Ok(Some(Connection { original: both.0, reply: both.1, mark, id, tuple: raw.to_vec() }))
}

fn parse_tuple(attribute: Attribute<'_>) -> Result<Tuple, Malformed> {
    let (mut source, mut destination, mut protocol, mut ports) = (None, None, None, [0; 2]);
    let inner = |attributes: Attributes<'_>, each: &mut dyn FnMut(Attribute<'_>) -> Result<(), Malformed>| {
        attributes.into_iter().try_for_each(|attribute| each(attribute?))
    };
    inner(attribute.nested(), &mut |part| match part.kind {
        CTA_TUPLE_IP => inner(part.nested(), &mut |address| {
            match address.kind {
                CTA_IP_V4_SRC | CTA_IP_V6_SRC => source = Some(address.ip()?),
                CTA_IP_V4_DST | CTA_IP_V6_DST => destination = Some(address.ip()?),
                _ => {}
            }
            Ok(())
        }),
        CTA_TUPLE_PROTO => inner(part.nested(), &mut |field| {
            match field.kind {
                CTA_PROTO_NUM => protocol = Some(field.u8()?),
                CTA_PROTO_SRC_PORT => ports[0] = field.be16()?,
                CTA_PROTO_DST_PORT => ports[1] = field.be16()?,
                _ => {}
            }
            Ok(())
        }),
        _ => Ok(()),
    })?;
    let missing = Malformed("a direction of a connection lacks a part");
    Ok(Tuple {
        source: source.ok_or(missing)?,
        destination: destination.ok_or(missing)?,
        protocol: protocol.ok_or(missing)?,
        source_port: ports[0],
        destination_port: ports[1],
    })
}
