//! nftables (nft(8)) by its netlink interface: tables, chains, maps and rules, changed in transactions.
//!
//! [`Transaction`] lists changes, [`Nft::commit`] makes all of them or none. [`rule`] builds rules out of
//! [`expression`]s, [`value`] what sets and maps hold, [`balance`] is the one shape of load balancing that skep uses.
//! What is meant is what `nft list ruleset` shows.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::conntrack::Conntrack;
use crate::error::NetlinkError;
use crate::kernel::*;
use crate::message::{Batch, Message};
use crate::socket::{Protocol as SocketProtocol, Socket};

pub mod balance;
pub mod content;
pub mod expression;
pub mod rule;
pub mod set;
pub mod transaction;
pub mod value;

pub use balance::{Backend, BackendChange, Backends, Balancer, Frontend, Service};
pub use content::Content;
pub use expression::{Expression, Register, Verdict};
pub use rule::{ConnectionState, Rule, Selector};
pub use set::{Element, Holds, Set};
pub use transaction::{BaseChain, ChainType, Hook, Transaction};
pub use value::{Field, Transport, Value};

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Both.
    Inet,
    /// All frames of a device.
    Netdev,
}

impl Family {
    /// `NFPROTO_*`.
    pub(crate) fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Netdev => 5,
            Self::Ip6 => 10,
        }
    }

    /// As nft(8) writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inet => "inet",
            Self::Ip => "ip",
            Self::Ip6 => "ip6",
            Self::Netdev => "netdev",
        }
    }
}

/// A table's name.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Table {
    /// Part of the name: the same word names different tables in different families.
    pub family: Family,
    /// The name within the family.
    pub name: String,
}

impl Table {
    /// A table of a family.
    pub fn new(family: Family, name: impl Into<String>) -> Self {
        Self { family, name: name.into() }
    }
}

impl std::fmt::Display for Table {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.family.name(), self.name)
    }
}

/// nftables of the network namespace in which it was opened.
#[derive(Debug)]
pub struct Nft {
    socket: Arc<Mutex<Socket>>,
    /// What its transactions made, where that is kept.
    made: Option<Mutex<Content>>,
}

impl Nft {
    /// Opens it in the calling thread's network namespace. For another, see [`crate::Namespace::enter`].
    pub fn open_here() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Arc::new(Mutex::new(Socket::open(SocketProtocol::Netfilter)?)), made: None })
    }

    /// Takes over the handle of another process, by its descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, NetlinkError> {
        Ok(Self { socket: Arc::new(Mutex::new(Socket::from_fd(fd, SocketProtocol::Netfilter)?)), made: None })
    }

    /// From now on it keeps what its transactions make, so that it can be compared with what is there: [`Nft::made`].
    #[must_use]
    pub fn remembering(self) -> Self {
        Self { made: Some(Mutex::default()), ..self }
    }

    /// What the transactions of this handle have made. Empty where it keeps nothing.
    pub fn made(&self) -> Content {
        self.made.as_ref().map(|made| made.lock().unwrap_or_else(PoisonError::into_inner).clone()).unwrap_or_default()
    }

    /// The descriptor, to be handed to another process that takes over. Both must not use it at the same time.
    pub fn try_clone_fd(&self) -> Result<OwnedFd, NetlinkError> {
        self.socket().try_clone_fd()
    }

    /// Connection tracking of the same namespace, by the same socket: each waits for the other's call.
    pub fn conntrack(&self) -> Conntrack {
        Conntrack::sharing(Arc::clone(&self.socket))
    }

    /// Makes all changes of a transaction at once, or none. The same one can be committed in many namespaces.
    ///
    /// # Errors
    /// That of the first change that was refused; then nothing has changed.
    pub fn commit(&self, transaction: &Transaction) -> Result<(), NetlinkError> {
        let batch = transaction.batch()?;
        let refusals = self.socket().transact(batch).map_err(|error| match error {
            crate::socket::SocketError::TooLong(index) => error.into_error(transaction.action(Some(index))),
            error => error.into_error(transaction.action(None)),
        })?;
        // A change that names what an earlier, refused one was to make is refused too: the first one tells why.
        match refusals.into_iter().min_by_key(|refusal| refusal.index) {
            None => {
                if let Some(made) = &self.made {
                    made.lock().unwrap_or_else(PoisonError::into_inner).follow(transaction);
                }
                Ok(())
            }
            Some(refusal) => {
                let action = transaction.action(refusal.index);
                Err(refusal.into_error(action))
            }
        }
    }

    /// The tables that there are, of all families that skep uses.
    pub fn tables(&self) -> Result<Vec<Table>, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind(NFT_MSG_GETTABLE), 0, |message| message.raw(&[0; 4]));
        let found = self.socket().dump(&request, |found: &mut Vec<Table>, message| {
            found.extend(parse_table(message)?);
            Ok(())
        });
        found.map_err(|error| error.into_error("list nftables tables"))
    }

    /// How many elements a set or map has.
    pub fn count_elements(&self, table: &Table, set: &str) -> Result<usize, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind(NFT_MSG_GETSETELEM), 0, |message| {
            message.raw(&[table.family.number(), 0, 0, 0]);
            message.string(NFTA_SET_ELEM_LIST_TABLE, &table.name);
            message.string(NFTA_SET_ELEM_LIST_SET, set);
        });
        let count = self.socket().dump(&request, |count: &mut usize, message| {
            if message.kind == kind(NFT_MSG_NEWSETELEM) {
                for attribute in message.split(4)?.1 {
                    let attribute = attribute?;
                    if attribute.kind == NFTA_SET_ELEM_LIST_ELEMENTS {
                        *count += attribute.nested().count();
                    }
                }
            }
            Ok(())
        });
        count.map_err(|error| error.into_error(format!("count the elements of {set} in table {table}")))
    }

    /// The chains that the kernel calls, of all families that skep uses.
    pub fn base_chains(&self) -> Result<Vec<FoundChain>, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind(NFT_MSG_GETCHAIN), 0, |message| message.raw(&[0; 4]));
        let found = self.socket().dump(&request, |found: &mut Vec<FoundChain>, message| {
            found.extend(parse_chain(message)?);
            Ok(())
        });
        found.map_err(|error| error.into_error("list nftables chains"))
    }

    /// The handles of a chain's rules, in order, each with its comment.
    pub fn rule_comments(&self, table: &Table, chain: &str) -> Result<Vec<(u64, String)>, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind(NFT_MSG_GETRULE), 0, |message| {
            message.raw(&[table.family.number(), 0, 0, 0]);
            message.string(NFTA_RULE_TABLE, &table.name);
            message.string(NFTA_RULE_CHAIN, chain);
        });
        let found = self.socket().dump(&request, |found: &mut Vec<(u64, String)>, message| {
            if message.kind == kind(NFT_MSG_NEWRULE) {
                let (mut handle, mut comment) = (0, String::new());
                for attribute in message.split(4)?.1 {
                    let attribute = attribute?;
                    match attribute.kind {
                        NFTA_RULE_HANDLE => handle = attribute.u64().map(u64::from_be)?,
                        NFTA_RULE_USERDATA => comment = read_comment(attribute.payload),
                        _ => {}
                    }
                }
                found.push((handle, comment));
            }
            Ok(())
        });
        found.map_err(|error| error.into_error(format!("list the rules of chain {chain} in table {table}")))
    }

    /// The handles of a chain's rules, in order: what [`Transaction::replace_rule`] and `delete_rule` take.
    pub fn rule_handles(&self, table: &Table, chain: &str) -> Result<Vec<u64>, NetlinkError> {
        let mut request = Batch::new();
        request.message(kind(NFT_MSG_GETRULE), 0, |message| {
            message.raw(&[table.family.number(), 0, 0, 0]);
            message.string(NFTA_RULE_TABLE, &table.name);
            message.string(NFTA_RULE_CHAIN, chain);
        });
        let handles = self.socket().dump(&request, |handles: &mut Vec<u64>, message| {
            if message.kind == kind(NFT_MSG_NEWRULE) {
                for attribute in message.split(4)?.1 {
                    let attribute = attribute?;
                    if attribute.kind == NFTA_RULE_HANDLE {
                        handles.push(attribute.u64().map(u64::from_be)?);
                    }
                }
            }
            Ok(())
        });
        handles.map_err(|error| error.into_error(format!("list the rules of chain {chain} in table {table}")))
    }

    fn socket(&self) -> MutexGuard<'_, Socket> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn kind(message: u16) -> u16 {
    NFNL_SUBSYS_NFTABLES << 8 | message
}

/// A chain that the kernel calls, as it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FoundChain {
    /// Its table.
    pub table: Table,
    /// Its name.
    pub name: String,
    /// Where it is called ([`Hook`]'s number).
    pub hook: u32,
    /// Whether it drops what its rules do not decide about.
    pub drop: bool,
}

fn family(fixed: &[u8]) -> Option<Family> {
    match fixed.first() {
        Some(1) => Some(Family::Inet),
        Some(2) => Some(Family::Ip),
        Some(5) => Some(Family::Netdev),
        Some(10) => Some(Family::Ip6),
        _ => None,
    }
}

/// Reads an `NFT_MSG_NEWCHAIN`; `None` for any other message and family, and for chains that only rules lead to.
pub(crate) fn parse_chain(message: Message<'_>) -> Result<Option<FoundChain>, crate::message::Malformed> {
    if message.kind != kind(NFT_MSG_NEWCHAIN) {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(4)?;
    let Some(family) = family(fixed) else { return Ok(None) };
    let (mut table, mut name, mut hook, mut drop) = (String::new(), String::new(), None, false);
    for attribute in attributes {
        let attribute = attribute?;
        match attribute.kind {
            NFTA_CHAIN_TABLE => table = attribute.string()?,
            NFTA_CHAIN_NAME => name = attribute.string()?,
            NFTA_CHAIN_POLICY => drop = attribute.be32()? == 0,
            NFTA_CHAIN_HOOK => {
                for part in attribute.nested() {
                    let part = part?;
                    if part.kind == NFTA_HOOK_HOOKNUM {
                        hook = Some(part.be32()?);
                    }
                }
            }
            _ => {}
        }
    }
    Ok(hook.map(|hook| FoundChain { table: Table { family, name: table }, name, hook, drop }))
}

/// A rule's comment in its user data: type, length and value of each part (libnftnl's `NFTNL_UDATA_RULE_COMMENT` is 0).
fn read_comment(data: &[u8]) -> String {
    let mut rest = data;
    while let [kind, length, tail @ ..] = rest {
        let Some((value, next)) = tail.split_at_checked(usize::from(*length)) else { break };
        if *kind == 0 {
            let text = value.split(|byte| *byte == 0).next().unwrap_or_default();
            return String::from_utf8_lossy(text).into_owned();
        }
        rest = next;
    }
    String::new()
}

/// Reads an `NFT_MSG_NEWTABLE`; `None` for any other message and family.
pub(crate) fn parse_table(message: Message<'_>) -> Result<Option<Table>, crate::message::Malformed> {
    if message.kind != kind(NFT_MSG_NEWTABLE) {
        return Ok(None);
    }
    let (fixed, attributes) = message.split(4)?;
    let Some(family) = family(fixed) else { return Ok(None) };
    for attribute in attributes {
        let attribute = attribute?;
        if attribute.kind == NFTA_TABLE_NAME {
            return Ok(Some(Table { family, name: attribute.string()? }));
        }
    }
    Ok(None)
}
