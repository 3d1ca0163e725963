//! The expressions that rules are made of, as the kernel knows them (include/uapi/linux/netfilter/nf_tables.h).
//!
//! Each loads into a register, compares or changes one, or decides. [`super::Rule`] puts them together.

use super::Family;
use super::value::Value;
use crate::kernel::*;
use crate::message::Writer;

/// Where values lie while a rule is worked off: the first of the 16 registers of four bytes that a value takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Register(pub u32);

impl Register {
    /// The first one.
    pub const FIRST: Self = Self(0);

    /// The one `count` further on.
    pub(crate) fn after(self, count: u32) -> Self {
        Self(self.0 + count)
    }

    /// `NFT_REG32_00` and following.
    fn number(self) -> u32 {
        8 + self.0
    }
}

/// What becomes of a packet, or of its way through the rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// On to the next hook.
    Accept,
    /// The packet ends here.
    Drop,
    /// On in a chain, and back here behind its end.
    Jump(String),
    /// On in a chain, and back to where this chain was jumped to from.
    Goto(String),
    /// Back to where this chain was jumped to from; in a base chain, its policy.
    Return,
}

impl Verdict {
    /// Writes the value of an attribute that holds data.
    pub(super) fn write(&self, data: &mut Writer<'_>) {
        let (code, chain) = match self {
            Self::Drop => (0, None),
            Self::Accept => (1, None),
            Self::Jump(chain) => (-3, Some(chain)),
            Self::Goto(chain) => (-4, Some(chain)),
            Self::Return => (-5, None),
        };
        data.nested(NFTA_DATA_VERDICT, |verdict| {
            verdict.bytes(NFTA_VERDICT_CODE, &i32::to_be_bytes(code));
            if let Some(chain) = chain {
                verdict.string(NFTA_VERDICT_CHAIN, chain);
            }
        });
    }
}

/// Which header a payload offset counts from (`NFT_PAYLOAD_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Header {
    /// Ethernet.
    Link = 0,
    /// IP.
    Network = 1,
    /// TCP, UDP.
    Transport = 2,
}

/// What is known of a packet besides its bytes (`NFT_META_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as nft(8) names them")]
pub enum Meta {
    Priority = 2,
    Mark = 3,
    Iifname = 6,
    Oifname = 7,
    Iiftype = 8,
    Nfproto = 15,
    L4proto = 16,
}

/// What connection tracking knows (`NFT_CT_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "as nft(8) names them")]
pub enum Ct {
    State = 0,
    Direction = 1,
    Status = 2,
    Mark = 3,
    Zone = 17,
}

/// How values are compared (`NFT_CMP_*`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "self-explanatory")]
pub enum Comparison {
    Equal = 0,
    NotEqual = 1,
}

/// An expression.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are as nft(8)'s, and registers are where a value comes from or goes to")]
pub enum Expression {
    /// Loads bytes of the packet.
    Payload { header: Header, offset: u32, length: u32, to: Register },
    /// Loads what is known of the packet.
    Meta { key: Meta, to: Register },
    /// Changes bytes of the packet, and no checksum.
    SetPayload { header: Header, offset: u32, length: u32, from: Register },
    /// Sets the packet's mark.
    SetMark { from: Register },
    /// Sets the packet's priority for queueing.
    SetPriority { from: Register },
    /// Loads what is known of the connection.
    Ct { key: Ct, to: Register },
    /// Sets the connection's mark.
    SetCtMark { from: Register },
    /// Sets the zone in which the packet's connection is looked for, as far as it is of the original direction.
    SetOriginalZone { from: Register },
    /// Loads the type of the destination address (`RTN_*`): whether it is this host's.
    DestinationType { to: Register },
    /// Goes on only if a register holds a value, or does not.
    Compare { register: Register, comparison: Comparison, value: Value },
    /// Keeps some bits of a register.
    Mask { register: Register, mask: Value },
    /// Loads a value.
    Immediate { value: Value, to: Register },
    /// Decides.
    Verdict(Verdict),
    /// Goes on only if a set has the key in a register, or a map; then loads what a map has.
    Lookup { set: String, from: Register, to: Option<Register>, absent: bool },
    /// Takes the verdict of a map for the key in a register; goes on if it has none.
    VerdictMap { set: String, from: Register },
    /// Loads a random number below `modulus`, plus `offset`.
    Random { modulus: u32, offset: u32, to: Register },
    /// Changes the destination of the connection.
    DestinationNat { ipv6: bool, address: Register, port: Option<Register> },
    /// Changes the source of the connection.
    SourceNat { ipv6: bool, address: Register },
    /// Changes the source of the connection to the outgoing device's address.
    Masquerade,
    /// Refuses: the sender is told that there is nobody at the port.
    Reject(Family),
    /// Refuses a TCP connection as if nobody listened.
    Reset,
    /// Counts packets and bytes.
    Counter,
    /// Goes on only for so many packets a second, and so many at once.
    Limit { per_second: u64, burst: u32 },
}

impl Expression {
    /// Writes one element of a rule's list.
    pub(super) fn write(&self, list: &mut Writer<'_>) {
        list.nested(NFTA_LIST_ELEM, |element| {
            element.string(NFTA_EXPR_NAME, self.name());
            element.nested(NFTA_EXPR_DATA, |data| self.write_data(data));
        });
    }

    /// The kernel's name.
    fn name(&self) -> &'static str {
        match self {
            Self::Payload { .. } | Self::SetPayload { .. } => "payload",
            Self::Meta { .. } | Self::SetMark { .. } | Self::SetPriority { .. } => "meta",
            Self::Ct { .. } | Self::SetCtMark { .. } | Self::SetOriginalZone { .. } => "ct",
            Self::DestinationType { .. } => "fib",
            Self::Compare { .. } => "cmp",
            Self::Mask { .. } => "bitwise",
            Self::Immediate { .. } | Self::Verdict(_) => "immediate",
            Self::Lookup { .. } | Self::VerdictMap { .. } => "lookup",
            Self::Random { .. } => "numgen",
            Self::DestinationNat { .. } | Self::SourceNat { .. } => "nat",
            Self::Masquerade => "masq",
            Self::Reject(_) | Self::Reset => "reject",
            Self::Counter => "counter",
            Self::Limit { .. } => "limit",
        }
    }

    fn write_data(&self, data: &mut Writer<'_>) {
        match self {
            Self::Payload { .. }
            | Self::Meta { .. }
            | Self::Ct { .. }
            | Self::DestinationType { .. }
            | Self::Random { .. } => self.write_load(data),
            Self::SetPayload { .. }
            | Self::SetMark { .. }
            | Self::SetPriority { .. }
            | Self::SetCtMark { .. }
            | Self::SetOriginalZone { .. } => self.write_store(data),
            Self::Compare { .. } | Self::Mask { .. } | Self::Immediate { .. } => self.write_constant(data),
            Self::Lookup { .. } | Self::VerdictMap { .. } => self.write_lookup(data),
            Self::Verdict(verdict) => {
                data.be32(NFTA_IMMEDIATE_DREG, 0);
                data.nested(NFTA_IMMEDIATE_DATA, |value| verdict.write(value));
            }
            Self::DestinationNat { ipv6, address, port } => write_nat(data, 1, *ipv6, *address, *port),
            Self::SourceNat { ipv6, address } => write_nat(data, 0, *ipv6, *address, None),
            Self::Masquerade => {}
            Self::Reject(family) => write_reject(data, *family),
            // NFT_REJECT_TCP_RST.
            Self::Reset => data.be32(NFTA_REJECT_TYPE, 1),
            Self::Counter => {
                data.be64(NFTA_COUNTER_BYTES, 0);
                data.be64(NFTA_COUNTER_PACKETS, 0);
            }
            Self::Limit { per_second, burst } => {
                data.be64(NFTA_LIMIT_RATE, *per_second);
                data.be64(NFTA_LIMIT_UNIT, 1);
                data.be32(NFTA_LIMIT_BURST, *burst);
                data.be32(NFTA_LIMIT_TYPE, 0);
                data.be32(NFTA_LIMIT_FLAGS, 0);
            }
        }
    }

    /// What brings something into a register.
    fn write_load(&self, data: &mut Writer<'_>) {
        match self {
            Self::Payload { header, offset, length, to } => {
                data.be32(NFTA_PAYLOAD_DREG, to.number());
                write_place(data, *header as u32, *offset, *length);
            }
            Self::Meta { key, to } => {
                data.be32(NFTA_META_DREG, to.number());
                data.be32(NFTA_META_KEY, *key as u32);
            }
            Self::Ct { key, to } => {
                data.be32(NFTA_CT_DREG, to.number());
                data.be32(NFTA_CT_KEY, *key as u32);
            }
            Self::DestinationType { to } => {
                data.be32(NFTA_FIB_DREG, to.number());
                // NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_DADDR.
                data.be32(NFTA_FIB_RESULT, 3);
                data.be32(NFTA_FIB_FLAGS, 2);
            }
            Self::Random { modulus, offset, to } => {
                data.be32(NFTA_NG_DREG, to.number());
                data.be32(NFTA_NG_MODULUS, *modulus);
                // NFT_NG_RANDOM.
                data.be32(NFTA_NG_TYPE, 1);
                data.be32(NFTA_NG_OFFSET, *offset);
            }
            _ => {}
        }
    }

    /// What takes something from a register.
    fn write_store(&self, data: &mut Writer<'_>) {
        match self {
            Self::SetPayload { header, offset, length, from } => {
                data.be32(NFTA_PAYLOAD_SREG, from.number());
                write_place(data, *header as u32, *offset, *length);
            }
            Self::SetMark { from } => write_meta(data, Meta::Mark, *from),
            Self::SetPriority { from } => write_meta(data, Meta::Priority, *from),
            Self::SetCtMark { from } => {
                data.be32(NFTA_CT_KEY, Ct::Mark as u32);
                data.be32(NFTA_CT_SREG, from.number());
            }
            Self::SetOriginalZone { from } => {
                data.be32(NFTA_CT_KEY, Ct::Zone as u32);
                data.be32(NFTA_CT_SREG, from.number());
                data.u8(NFTA_CT_DIRECTION, 0);
            }
            _ => {}
        }
    }

    /// What has to do with a value that the rule says.
    fn write_constant(&self, data: &mut Writer<'_>) {
        match self {
            Self::Compare { register, comparison, value } => {
                data.be32(NFTA_CMP_SREG, register.number());
                data.be32(NFTA_CMP_OP, *comparison as u32);
                write_value(data, NFTA_CMP_DATA, value);
            }
            Self::Mask { register, mask } => {
                data.be32(NFTA_BITWISE_SREG, register.number());
                data.be32(NFTA_BITWISE_DREG, register.number());
                data.be32(NFTA_BITWISE_LEN, u32::try_from(mask.bytes().len()).unwrap_or(0));
                write_value(data, NFTA_BITWISE_MASK, mask);
                let zeroes = [0; 64];
                data.nested(NFTA_BITWISE_XOR, |xor| xor.bytes(NFTA_DATA_VALUE, &zeroes[..mask.bytes().len()]));
            }
            Self::Immediate { value, to } => {
                data.be32(NFTA_IMMEDIATE_DREG, to.number());
                write_value(data, NFTA_IMMEDIATE_DATA, value);
            }
            _ => {}
        }
    }

    fn write_lookup(&self, data: &mut Writer<'_>) {
        let (set, from, to, absent) = match self {
            Self::Lookup { set, from, to, absent } => (set, from, to.map(Register::number), *absent),
            // NFT_REG_VERDICT.
            Self::VerdictMap { set, from } => (set, from, Some(0), false),
            _ => return,
        };
        data.string(NFTA_LOOKUP_SET, set);
        data.be32(NFTA_LOOKUP_SREG, from.number());
        if let Some(to) = to {
            data.be32(NFTA_LOOKUP_DREG, to);
        }
        if absent {
            data.be32(NFTA_LOOKUP_FLAGS, 1);
        }
    }
}

/// "Port unreachable" in ICMP, in ICMPv6, and in the kernel's word for either.
fn write_reject(data: &mut Writer<'_>, family: Family) {
    let (kind, code) = match family {
        Family::Ip => (0, 3),
        Family::Ip6 => (0, 4),
        Family::Inet | Family::Netdev => (2, 1),
    };
    data.be32(NFTA_REJECT_TYPE, kind);
    data.u8(NFTA_REJECT_ICMP_CODE, code);
}

/// Some bytes of a packet.
fn write_place(data: &mut Writer<'_>, header: u32, offset: u32, length: u32) {
    data.be32(NFTA_PAYLOAD_BASE, header);
    data.be32(NFTA_PAYLOAD_OFFSET, offset);
    data.be32(NFTA_PAYLOAD_LEN, length);
}

fn write_value(data: &mut Writer<'_>, kind: u16, value: &Value) {
    data.nested(kind, |inner| inner.bytes(NFTA_DATA_VALUE, value.bytes()));
}

fn write_meta(data: &mut Writer<'_>, key: Meta, from: Register) {
    data.be32(NFTA_META_KEY, key as u32);
    data.be32(NFTA_META_SREG, from.number());
}

fn write_nat(data: &mut Writer<'_>, kind: u32, ipv6: bool, address: Register, port: Option<Register>) {
    data.be32(NFTA_NAT_TYPE, kind);
    data.be32(NFTA_NAT_FAMILY, u32::from(if ipv6 { Family::Ip6 } else { Family::Ip }.number()));
    data.be32(NFTA_NAT_REG_ADDR_MIN, address.number());
    if let Some(port) = port {
        data.be32(NFTA_NAT_REG_PROTO_MIN, port.number());
    }
}
