//! Builds rules: each method appends what nft(8) makes of the words in its documentation.

use std::net::IpAddr;

use super::Family;
use super::expression::{Comparison, Ct, Expression, Header, Meta, Register, Verdict};
use super::value::{Field, Transport, Value};
use crate::types::Prefix;

/// A rule. Its expressions are worked off in order, until one of them does not match or decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    family: Family,
    pub(super) expressions: Vec<Expression>,
    pub(super) comment: Option<String>,
    /// The IP version that was checked already (tables of both).
    version: Option<bool>,
}

/// What a key is looked up by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Selector {
    /// `ip saddr`
    Ip4Source,
    /// `ip daddr`
    Ip4Destination,
    /// `ip6 saddr`
    Ip6Source,
    /// `ip6 daddr`
    Ip6Destination,
    /// `ether saddr`
    EtherSource,
    /// `meta l4proto`
    Protocol,
    /// `th dport`
    DestinationPort,
    /// `meta mark`
    Mark,
    /// `ct mark`
    CtMark,
    /// `iifname`
    InputDevice,
    /// `oifname`
    OutputDevice,
}

impl Selector {
    /// What a set's key must be for it.
    pub fn field(self) -> Field {
        match self {
            Self::Ip4Source | Self::Ip4Destination => Field::Ip4,
            Self::Ip6Source | Self::Ip6Destination => Field::Ip6,
            Self::EtherSource => Field::Mac,
            Self::Protocol => Field::Protocol,
            Self::DestinationPort => Field::Port,
            Self::Mark | Self::CtMark => Field::Mark,
            Self::InputDevice | Self::OutputDevice => Field::Device,
        }
    }

    fn load(self, to: Register) -> Expression {
        let payload = |header, offset| {
            let length = u32::try_from(self.field().length()).unwrap_or(0);
            Expression::Payload { header, offset, length, to }
        };
        match self {
            Self::Ip4Source => payload(Header::Network, 12),
            Self::Ip4Destination => payload(Header::Network, 16),
            Self::Ip6Source => payload(Header::Network, 8),
            Self::Ip6Destination => payload(Header::Network, 24),
            Self::EtherSource => payload(Header::Link, 6),
            Self::DestinationPort => payload(Header::Transport, 2),
            Self::Protocol => Expression::Meta { key: Meta::L4proto, to },
            Self::Mark => Expression::Meta { key: Meta::Mark, to },
            Self::CtMark => Expression::Ct { key: Ct::Mark, to },
            Self::InputDevice => Expression::Meta { key: Meta::Iifname, to },
            Self::OutputDevice => Expression::Meta { key: Meta::Oifname, to },
        }
    }
}

/// States of a connection (`ct state`), as bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionState(u32);

impl ConnectionState {
    /// Packets that belong to no connection and open none.
    pub const INVALID: Self = Self(1);
    /// Packets of connections that were answered.
    pub const ESTABLISHED: Self = Self(2);
    /// First packets of connections that another one announced.
    pub const RELATED: Self = Self(4);
    /// First packets.
    pub const NEW: Self = Self(8);

    /// Either.
    pub fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// `IPS_DST_NAT`.
const STATUS_DNAT: u32 = 1 << 5;
/// `RTN_LOCAL`.
const LOCAL: u32 = 2;
/// `ARPHRD_ETHER`.
const ETHER: u16 = 1;
/// Where the last four bytes of an Ethernet header's destination and source begin.
const RECEIVER: u32 = 2;
const SENDER: u32 = 8;

impl Rule {
    /// A rule for tables of a family, that matches all packets and does nothing.
    pub fn new(family: Family) -> Self {
        Self { family, expressions: Vec::new(), comment: None, version: None }
    }

    /// Appends any expression.
    pub fn with(mut self, expression: Expression) -> Self {
        self.expressions.push(expression);
        self
    }

    /// `comment "…"`
    pub fn comment(mut self, text: impl Into<String>) -> Self {
        self.comment = Some(text.into());
        self
    }

    /// `iifname "…"`
    pub fn input_device(self, name: &str) -> Self {
        self.meta_is(Meta::Iifname, Value::new().device(name))
    }

    /// `iifname != "…"`
    pub fn input_device_not(self, name: &str) -> Self {
        self.meta(Meta::Iifname, Comparison::NotEqual, Value::new().device(name))
    }

    /// `oifname "…"`
    pub fn output_device(self, name: &str) -> Self {
        self.meta_is(Meta::Oifname, Value::new().device(name))
    }

    /// `oifname != "…"`
    pub fn output_device_not(self, name: &str) -> Self {
        self.meta(Meta::Oifname, Comparison::NotEqual, Value::new().device(name))
    }

    /// `iifname "…*"`
    pub fn input_device_prefix(self, prefix: &str) -> Self {
        self.meta_is(Meta::Iifname, Value::new().device_prefix(prefix))
    }

    /// `oifname "…*"`
    pub fn output_device_prefix(self, prefix: &str) -> Self {
        self.meta_is(Meta::Oifname, Value::new().device_prefix(prefix))
    }

    /// `meta l4proto …`
    pub fn protocol(self, protocol: Transport) -> Self {
        self.meta_is(Meta::L4proto, Value::new().protocol(protocol))
    }

    /// `tcp dport …` or `udp dport …`
    pub fn destination_port(self, protocol: Transport, port: u16) -> Self {
        let rule = self.protocol(protocol).with(Selector::DestinationPort.load(Register::FIRST));
        rule.equals(Value::new().port(port))
    }

    /// `ip saddr …` or `ip6 saddr …`
    pub fn source(self, prefix: Prefix) -> Self {
        self.address(Selector::Ip4Source, Selector::Ip6Source, prefix, Comparison::Equal)
    }

    /// `ip saddr != …` or `ip6 saddr != …`
    pub fn source_not(self, prefix: Prefix) -> Self {
        self.address(Selector::Ip4Source, Selector::Ip6Source, prefix, Comparison::NotEqual)
    }

    /// `ip daddr …` or `ip6 daddr …`
    pub fn destination(self, prefix: Prefix) -> Self {
        self.address(Selector::Ip4Destination, Selector::Ip6Destination, prefix, Comparison::Equal)
    }

    /// `ip daddr != …` or `ip6 daddr != …`
    pub fn destination_not(self, prefix: Prefix) -> Self {
        self.address(Selector::Ip4Destination, Selector::Ip6Destination, prefix, Comparison::NotEqual)
    }

    /// `fib daddr type local`
    pub fn local_destination(self) -> Self {
        self.with(Expression::DestinationType { to: Register::FIRST }).equals(Value::new().number(LOCAL))
    }

    /// `meta mark …`
    pub fn mark(self, mark: u32) -> Self {
        self.meta_is(Meta::Mark, Value::new().number(mark))
    }

    /// `meta mark & … == …`: the mark's bytes, as they lie in memory, are an address of the prefix.
    pub fn mark_in(self, prefix: Prefix) -> Self {
        self.with(Selector::Mark.load(Register::FIRST)).in_prefix(prefix)
    }

    /// `ct mark & … == …`: the mark's bytes, as they lie in memory, are an address of the prefix.
    pub fn ct_mark_in(self, prefix: Prefix) -> Self {
        self.with(Selector::CtMark.load(Register::FIRST)).in_prefix(prefix)
    }

    /// Sets the connection's mark to bytes of the frame's Ethernet source.
    pub fn set_ct_mark_of_sender(self) -> Self {
        let rule = self.meta_is(Meta::Iiftype, Value::new().type_of_device(ETHER));
        rule.with(Expression::Payload { header: Header::Link, offset: SENDER, length: 4, to: Register::FIRST })
            .with(Expression::SetCtMark { from: Register::FIRST })
    }

    /// `ct original zone set …`: connections are told apart by the last two bytes of the Ethernet source.
    pub fn set_zone_of_sender(self) -> Self {
        let rule = self.meta_is(Meta::Iiftype, Value::new().type_of_device(ETHER));
        rule.with(Expression::Payload { header: Header::Link, offset: SENDER + 2, length: 2, to: Register::FIRST })
            .with(Expression::SetOriginalZone { from: Register::FIRST })
    }

    /// Sets the last four bytes of the Ethernet destination to those of the mark. Only in tables of devices.
    pub fn set_receiver_of_mark(self) -> Self {
        self.with(Selector::Mark.load(Register::FIRST)).with(Expression::SetPayload {
            header: Header::Link,
            offset: RECEIVER,
            length: 4,
            from: Register::FIRST,
        })
    }

    /// `ct mark …`
    pub fn ct_mark(self, mark: u32) -> Self {
        self.with(Selector::CtMark.load(Register::FIRST)).equals(Value::new().number(mark))
    }

    /// `ct state …`
    pub fn state(self, state: ConnectionState) -> Self {
        self.any_bit(Ct::State, state.0)
    }

    /// `ct status dnat`
    pub fn was_redirected(self) -> Self {
        self.any_bit(Ct::Status, STATUS_DNAT)
    }

    /// `ct direction original` or `reply`
    pub fn direction(self, reply: bool) -> Self {
        let load = Expression::Ct { key: Ct::Direction, to: Register::FIRST };
        self.with(load).equals(Value::new().byte(u8::from(reply)))
    }

    /// `… . … @set`: goes on only for keys that the set has.
    pub fn in_set(self, key: &[Selector], set: &str) -> Self {
        let lookup = Expression::Lookup { set: set.to_owned(), from: Register::FIRST, to: None, absent: false };
        self.key(key).with(lookup)
    }

    /// `… . … != @set`: goes on only for keys that the set has not.
    pub fn not_in_set(self, key: &[Selector], set: &str) -> Self {
        let lookup = Expression::Lookup { set: set.to_owned(), from: Register::FIRST, to: None, absent: true };
        self.key(key).with(lookup)
    }

    /// `… . … vmap @map`
    pub fn verdict_of(self, key: &[Selector], map: &str) -> Self {
        self.key(key).with(Expression::VerdictMap { set: map.to_owned(), from: Register::FIRST })
    }

    /// `dnat to numgen random mod <count> map @map`: one of the map's numbered targets, which are addresses of the
    /// given version, with a port or without. `count` must not be 0.
    ///
    /// The kernel looks at each element of a map when a rule with it is made, some 80 ns each. Where `count` changes
    /// often, see [`Rule::draw`].
    pub fn random_destination(self, count: u32, map: &str, ipv6: bool, port: bool) -> Self {
        self.with(Expression::Random { modulus: count, offset: 0, to: Register::FIRST }).numbered(map, ipv6, port)
    }

    /// `meta priority set numgen random mod <count> offset <first>`: draws the number for a later rule, as values
    /// cannot be handed on otherwise. Unlike a mark, a packet's priority changes nothing about where it goes. `count`
    /// must not be 0.
    pub fn draw(self, count: u32, first: u32) -> Self {
        self.with(Expression::Random { modulus: count, offset: first, to: Register::FIRST })
            .with(Expression::SetPriority { from: Register::FIRST })
    }

    /// `dnat to meta priority map @map`: the target that an earlier rule drew ([`Rule::draw`]).
    pub fn drawn_destination(self, map: &str, ipv6: bool, port: bool) -> Self {
        self.with(Expression::Meta { key: Meta::Priority, to: Register::FIRST }).numbered(map, ipv6, port)
    }

    /// Changes the destination to what a map has for the number in the first register.
    fn numbered(self, map: &str, ipv6: bool, port: bool) -> Self {
        let address = Register::FIRST;
        let field = if ipv6 { Field::Ip6 } else { Field::Ip4 };
        let port = port.then(|| address.after(field.registers()));
        self.with(Expression::Lookup { set: map.to_owned(), from: address, to: Some(address), absent: false })
            .with(Expression::DestinationNat { ipv6, address, port })
    }

    /// `dnat to …`, or `dnat to … : …`
    pub fn destination_nat(self, address: IpAddr, port: Option<u16>) -> Self {
        let (first, second) = (Register(0), Register(4));
        let mut rule = self.with(Expression::Immediate { value: Value::new().ip(address), to: first });
        if let Some(port) = port {
            rule = rule.with(Expression::Immediate { value: Value::new().port(port), to: second });
        }
        rule.with(Expression::DestinationNat { ipv6: address.is_ipv6(), address: first, port: port.map(|_| second) })
    }

    /// `snat to …`
    pub fn source_nat(self, address: IpAddr) -> Self {
        self.with(Expression::Immediate { value: Value::new().ip(address), to: Register::FIRST })
            .with(Expression::SourceNat { ipv6: address.is_ipv6(), address: Register::FIRST })
    }

    /// `masquerade`
    pub fn masquerade(self) -> Self {
        self.with(Expression::Masquerade)
    }

    /// `meta mark set …`
    pub fn set_mark(self, mark: u32) -> Self {
        self.with(Expression::Immediate { value: Value::new().number(mark), to: Register::FIRST })
            .with(Expression::SetMark { from: Register::FIRST })
    }

    /// `meta mark set ct mark`
    pub fn restore_mark(self) -> Self {
        self.with(Selector::CtMark.load(Register::FIRST)).with(Expression::SetMark { from: Register::FIRST })
    }

    /// `ct mark set … map @map`: what a map of marks has for the key.
    pub fn set_ct_mark_of(self, key: &[Selector], map: &str) -> Self {
        let first = Register::FIRST;
        self.key(key)
            .with(Expression::Lookup { set: map.to_owned(), from: first, to: Some(first), absent: false })
            .with(Expression::SetCtMark { from: first })
    }

    /// `counter`
    pub fn counter(self) -> Self {
        self.with(Expression::Counter)
    }

    /// `limit rate …/second burst … packets`
    pub fn limit(self, per_second: u64, burst: u32) -> Self {
        self.with(Expression::Limit { per_second, burst })
    }

    /// `reject with icmp port-unreachable`, or its like for the family.
    pub fn reject(self) -> Self {
        let family = self.family;
        self.with(Expression::Reject(family))
    }

    /// `meta l4proto tcp reject with tcp reset`
    pub fn reset(self) -> Self {
        self.protocol(Transport::Tcp).with(Expression::Reset)
    }

    /// `accept`, `drop`, `jump …`, `goto …`, `return`
    pub fn verdict(self, verdict: Verdict) -> Self {
        self.with(Expression::Verdict(verdict))
    }

    /// Loads the parts of a key into registers, one behind the other.
    fn key(self, key: &[Selector]) -> Self {
        let mut rule = self;
        let mut register = Register::FIRST;
        for selector in key {
            rule = rule.with_version(*selector);
        }
        for selector in key {
            rule = rule.with(selector.load(register));
            register = register.after(selector.field().registers());
        }
        rule
    }

    /// In a table of both families, addresses lie where they do only after a check of the version; and only some
    /// devices have Ethernet addresses.
    fn with_version(mut self, selector: Selector) -> Self {
        let ipv6 = match selector.field() {
            Field::Mac => return self.meta_is(Meta::Iiftype, Value::new().type_of_device(ETHER)),
            Field::Ip4 => false,
            Field::Ip6 => true,
            _ => return self,
        };
        if self.family != Family::Inet || self.version == Some(ipv6) {
            return self;
        }
        self.version = Some(ipv6);
        let number = if ipv6 { Family::Ip6 } else { Family::Ip }.number();
        self.meta_is(Meta::Nfproto, Value::new().byte(number))
    }

    fn address(self, v4: Selector, v6: Selector, prefix: Prefix, comparison: Comparison) -> Self {
        let (selector, whole) = if prefix.address.is_ipv4() { (v4, 32) } else { (v6, 128) };
        let register = Register::FIRST;
        let mut rule = self.with_version(selector).with(selector.load(register));
        if prefix.length < whole {
            rule = rule.with(Expression::Mask { register, mask: Value::new().ip(prefix.mask()) });
        }
        rule.with(Expression::Compare { register, comparison, value: Value::new().ip(prefix.network()) })
    }

    /// Goes on where the first register has an IPv4 address of the prefix.
    fn in_prefix(self, prefix: Prefix) -> Self {
        let register = Register::FIRST;
        self.with(Expression::Mask { register, mask: Value::new().ip(prefix.mask()) })
            .equals(Value::new().ip(prefix.network()))
    }

    fn any_bit(self, key: Ct, bits: u32) -> Self {
        let register = Register::FIRST;
        self.with(Expression::Ct { key, to: register })
            .with(Expression::Mask { register, mask: Value::new().number(bits) })
            .with(Expression::Compare { register, comparison: Comparison::NotEqual, value: Value::new().number(0) })
    }

    fn meta_is(self, key: Meta, value: Value) -> Self {
        self.meta(key, Comparison::Equal, value)
    }

    fn meta(self, key: Meta, comparison: Comparison, value: Value) -> Self {
        let register = Register::FIRST;
        self.with(Expression::Meta { key, to: register }).with(Expression::Compare { register, comparison, value })
    }

    fn equals(self, value: Value) -> Self {
        let register = Register::FIRST;
        self.with(Expression::Compare { register, comparison: Comparison::Equal, value })
    }
}
