//! Decides what a question of a sandbox is answered with, or that its name servers are to be asked.
//!
//! Pure: a function of the sandbox's view, the question and a seed. Called by the server for each question. It never sees
//! a network that the sandbox is not on.
//!
//! A name that exists, without an address of the family that was asked for, is answered with no data, never with "no such
//! name": resolvers ask for A and AAAA side by side, and one that hears "no such name" for AAAA may give up on both.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hickory_proto::rr::{DNSClass, Name, RecordType};

use crate::name::Key;
use crate::view::{Called, Found, View};
use crate::zone::Family;

/// The question, as far as it matters here.
pub(crate) struct Question<'a> {
    pub(crate) name: &'a Name,
    pub(crate) kind: RecordType,
    pub(crate) class: DNSClass,
    /// How many addresses the answer can carry: only so many need to be drawn.
    pub(crate) room: usize,
}

/// What to do with a question.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Decision {
    Answer(Answer),
    /// The name servers know.
    Ask,
    /// The name servers may know; if they do not, or do not answer, this is it.
    AskOr(Answer),
}

/// An answer from here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// At least one; what does not fit is left out from the end.
    Addresses(Vec<IpAddr>),
    /// The comparable name of an address.
    Pointer(String),
    /// The name exists, and has nothing of this type.
    NoData,
    /// No such name (NXDOMAIN).
    NoName,
    /// A class other than the Internet's.
    Refused,
    /// Zone transfers and types that are none.
    NotImplemented,
}

/// Decides. The order of addresses follows from `seed`.
pub(crate) fn decide(view: &View, question: &Question<'_>, seed: u64) -> Decision {
    if !matches!(question.class, DNSClass::IN | DNSClass::ANY) {
        return Decision::Answer(Answer::Refused);
    }
    // 41 is EDNS's own record; 249 to 254 are key exchange, signatures, zone transfers and mail types of the past.
    if matches!(u16::from(question.kind), 41 | 249..=254) {
        return Decision::Answer(Answer::NotImplemented);
    }
    let family = Family::of(question.kind);
    let elsewhere = if view.has_way_out() { Decision::Ask } else { Decision::Answer(Answer::NoName) };
    // A name with octets that no row can have is not ours.
    let Some(key) = Key::of(question.name) else { return elsewhere };
    let name = key.as_str();

    if name == "localhost" || name.ends_with(".localhost") {
        return Decision::Answer(localhost(family));
    }
    if let Some(address) = reverse(question.name, name) {
        return pointer(view, address, question.kind).map_or(elsewhere, Decision::Answer);
    }
    if let Some(found) = view.addresses(name, family) {
        return Decision::Answer(addresses(found, question.room, seed));
    }
    if let Some(found) = view.searched(name, family) {
        let answer = addresses(found, question.room, seed);
        return if view.has_way_out() { Decision::AskOr(answer) } else { Decision::Answer(answer) };
    }
    // With ndots the client tries its search domains first: the bare label is for us alone. Top-level domains have other
    // types, which go on.
    let host_name = matches!(family, Family::V4 | Family::V6) && !name.is_empty() && !name.contains('.');
    if host_name && !view.forwards_single_labels() {
        return Decision::Answer(Answer::NoName);
    }
    elsewhere
}

/// Loopback, whoever asks (RFC 6761, 6.3).
fn localhost(family: Family) -> Answer {
    let both = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
    let found = Found { addresses: both.into_iter().filter(|&address| family.wants(address)).collect(), ordered: true };
    addresses(found, both.len(), 0)
}

/// The address that a name under `in-addr.arpa` or `ip6.arpa` stands for. `None` for any other name, zones in between
/// included.
fn reverse(wire: &Name, name: &str) -> Option<IpAddr> {
    if !name.ends_with(".arpa") {
        return None;
    }
    let net = wire.parse_arpa_name().ok()?;
    (net.prefix_len() == net.max_prefix_len()).then(|| net.addr())
}

/// `None`: the address is not ours.
fn pointer(view: &View, address: IpAddr, kind: RecordType) -> Option<Answer> {
    let called = if address.is_loopback() { Called::Name("localhost".to_owned()) } else { view.name_of(address) };
    match called {
        Called::Name(name) if matches!(kind, RecordType::PTR | RecordType::ANY) => Some(Answer::Pointer(name)),
        Called::Name(_) | Called::Nameless => Some(Answer::NoData),
        Called::Nobody => Some(Answer::NoName),
        Called::NotOurs => None,
    }
}

/// The first `room` of them are drawn at random: each with the same chance, at each place.
fn addresses(mut found: Found, room: usize, seed: u64) -> Answer {
    if found.addresses.is_empty() {
        return Answer::NoData;
    }
    if !found.ordered {
        let (count, mut state) = (found.addresses.len(), seed);
        for place in 0..room.min(count - 1) {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let left = (count - place) as u64;
            // Lemire's reduction: the high half of the product is below `left`.
            let drawn = (u128::from(mix(state)) * u128::from(left)) >> 64;
            found.addresses.swap(place, place + drawn as usize);
        }
    }
    Answer::Addresses(found.addresses)
}

/// The finaliser of SplitMix64 (Steele, Lea, Flood 2014): a bijection that spreads every bit.
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
#[path = "answer_test.rs"]
mod answer_test;
