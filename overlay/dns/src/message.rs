//! Messages: what a sandbox sends into a request, an answer into its octets, and what goes to a name server and back.
//!
//! Pure, called by the server and by the forwarder. Decoding is hickory-proto's, and so is encoding, but for lists of
//! addresses. Nothing that a sandbox or a name server sends makes it panic, and no reply is longer than its client takes.

use std::net::IpAddr;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::PTR;
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder};

use crate::answer::{Answer, Question};
use crate::name;

/// Seconds that a client may keep an answer. Docker's 600 would keep tasks that are gone for ten minutes in any cache
/// inside a container (nginx, systemd-resolved, dnsmasq, Envoy keep what they may); ours are to be right 200 ms after a
/// change, and the only TTL below a second is 0: use it for this request. Asking again costs some 20 µs. Negative answers
/// carry no SOA, so they are not kept either (RFC 2308, section 5).
pub(crate) const TTL: u32 = 0;
/// The longest query that is read. Real ones have some 60 octets, 468 when padded (RFC 8467).
pub(crate) const LONGEST_QUERY: usize = 4096;
/// The most that one UDP datagram carries over IPv4.
const LONGEST_DATAGRAM: usize = 65_507;
/// The most that is asked of a name server over UDP: larger datagrams may be fragmented on the way, and fragments get lost
/// (DNS flag day 2020). A longer answer comes over TCP.
const UNFRAGMENTED: usize = 1232;
/// The most over UDP for a client that does not say (RFC 1035, 2.3.4).
const PLAIN_DATAGRAM: usize = 512;
const HEADER: usize = 12;
/// An OPT record without options.
const OPT: usize = 11;
/// A record with a compressed name (2), type, class, TTL and length (10), without its data.
const RECORD: usize = 12;

/// How a query came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Udp,
    Tcp,
}

/// A query that is to be answered.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    metadata: Metadata,
    query: Query,
    /// DO, where the client speaks EDNS.
    edns: Option<bool>,
    /// What the client takes, in octets.
    limit: usize,
    pub(crate) transport: Transport,
}

/// What became of octets from a sandbox.
#[derive(Debug)]
pub(crate) enum Parsed {
    Request(Request),
    /// Answered at once: not a query that we understand.
    Reply(Vec<u8>),
    /// Nothing to answer: no header, or a response. Answering those could go on for ever between two servers.
    Drop,
}

/// Reads a query.
pub(crate) fn parse(octets: &[u8], transport: Transport) -> Parsed {
    // Looked at before anything is decoded: no sandbox can make a query cost more than a question and two records.
    let &[id_high, id_low, flags, _, ref counts @ ..] = octets else { return Parsed::Drop };
    if octets.len() < HEADER || flags & 0x80 != 0 {
        return Parsed::Drop;
    }
    let id = u16::from_be_bytes([id_high, id_low]);
    let op_code = OpCode::from_u8((flags >> 3) & 0x0f);
    let refuse = |code| reply(&Message::error_msg(id, op_code, code));
    let wrong = if op_code == OpCode::Query { ResponseCode::FormErr } else { ResponseCode::NotImp };
    // One question, no answers, no authorities; EDNS and a signature besides.
    let modest = matches!(counts, [0, 1, 0, 0, 0, 0, 0, 0..=2, ..]);
    if !modest || octets.len() > LONGEST_QUERY {
        return refuse(wrong);
    }
    let Ok(message) = Message::from_vec(octets) else { return refuse(wrong) };
    let Some(query) = message.queries.into_iter().next() else { return refuse(wrong) };
    let mut request = Request {
        metadata: message.metadata,
        query,
        edns: message.edns.as_ref().map(|edns| edns.flags().dnssec_ok),
        limit: usize::from(u16::MAX),
        transport,
    };
    if transport == Transport::Udp {
        let said = message.edns.as_ref().map_or(PLAIN_DATAGRAM, |edns| usize::from(edns.max_payload()));
        request.limit = said.clamp(PLAIN_DATAGRAM, LONGEST_DATAGRAM);
    }
    if op_code != OpCode::Query {
        return reply(&request.response(ResponseCode::NotImp));
    }
    if message.edns.is_some_and(|edns| edns.version() > 0) {
        return reply(&request.response(ResponseCode::BADVERS));
    }
    Parsed::Request(request)
}

fn reply(message: &Message) -> Parsed {
    message.to_vec().map_or(Parsed::Drop, Parsed::Reply)
}

impl Request {
    /// What the client takes, in octets.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    pub(crate) fn question(&self) -> Question<'_> {
        let opt = if self.edns.is_some() { OPT } else { 0 };
        let left = self.limit.saturating_sub(HEADER + self.question_length() + opt);
        // Sized for the longer addresses where both may come.
        let record = RECORD + if self.query.query_type() == RecordType::A { 4 } else { 16 };
        Question {
            name: self.query.name(),
            kind: self.query.query_type(),
            class: self.query.query_class(),
            room: left / record,
        }
    }

    /// A response without records. RA is set although internal networks forward nothing: glibc goes on to the next server
    /// when it sees an empty answer without it.
    fn response(&self, code: ResponseCode) -> Message {
        let mut message = Message::response(self.metadata.id, self.metadata.op_code);
        message.metadata = Metadata::response_from_request(&self.metadata);
        message.metadata.recursion_available = true;
        message.metadata.response_code = code;
        message.add_query(self.query.clone());
        message.edns = self.edns.map(|dnssec_ok| {
            let mut edns = Edns::new();
            edns.set_max_payload(LONGEST_QUERY as u16).set_dnssec_ok(dnssec_ok);
            edns
        });
        message
    }

    /// The octets of an answer, cut to what the client takes. Over UDP a cut answer says so, and the client may ask again
    /// over TCP; over TCP nothing more could be had, so the addresses that fit are the answer.
    pub(crate) fn answer(&self, answer: &Answer) -> Vec<u8> {
        let code = match answer {
            Answer::Addresses(_) | Answer::Pointer(_) | Answer::NoData => ResponseCode::NoError,
            Answer::NoName => ResponseCode::NXDomain,
            Answer::Refused => ResponseCode::Refused,
            Answer::NotImplemented => ResponseCode::NotImp,
        };
        let mut message = self.response(code);
        message.metadata.authoritative = matches!(code, ResponseCode::NoError | ResponseCode::NXDomain);
        let owner = self.query.name();
        match answer {
            Answer::Addresses(addresses) => {
                let room = self.question().room;
                message.metadata.truncation = addresses.len() > room && self.transport == Transport::Udp;
                let mut octets = self.encode(&message);
                self.insert(&mut octets, &addresses[..addresses.len().min(room)]);
                return octets;
            }
            Answer::Pointer(target) => {
                let target = name::wire(target).map(|target| RData::PTR(PTR(target)));
                message.answers = target.map(|data| Record::from_rdata(owner.clone(), TTL, data)).into_iter().collect();
            }
            Answer::NoData | Answer::NoName | Answer::Refused | Answer::NotImplemented => {}
        }
        self.encode(&message)
    }

    /// Inserts address records behind the question of an encoded response that has no other answers. By hand, because the
    /// library writes names out in full beyond 16 KiB, although each of these can point at the question's: four times as
    /// many tasks fit, and none costs an allocation.
    fn insert(&self, octets: &mut Vec<u8>, addresses: &[IpAddr]) {
        let mut records = Vec::with_capacity(addresses.len() * (RECORD + 16));
        for address in addresses {
            let (kind, data) = match address {
                IpAddr::V4(address) => (1_u16, &address.octets()[..]),
                IpAddr::V6(address) => (28, &address.octets()[..]),
            };
            // The question's name is the first thing behind the header (RFC 1035, 4.1.4).
            records.extend_from_slice(&[0xc0, HEADER as u8]);
            records.extend_from_slice(&kind.to_be_bytes());
            records.extend_from_slice(&u16::from(DNSClass::IN).to_be_bytes());
            records.extend_from_slice(&TTL.to_be_bytes());
            records.extend_from_slice(&(data.len() as u16).to_be_bytes());
            records.extend_from_slice(data);
        }
        let place = HEADER + self.question_length();
        if place <= octets.len() {
            octets.splice(place..place, records);
            octets[6..8].copy_from_slice(&(addresses.len() as u16).to_be_bytes());
        }
    }

    /// Octets of the question on the wire.
    fn question_length(&self) -> usize {
        self.query.name().iter().map(|label| label.len() + 1).sum::<usize>() + 1 + 4
    }

    /// No name server answered, or too many questions of this sandbox are under way.
    pub(crate) fn failure(&self) -> Vec<u8> {
        self.encode(&self.response(ResponseCode::ServFail))
    }

    fn encode(&self, message: &Message) -> Vec<u8> {
        match message.to_vec() {
            Ok(octets) if octets.len() <= self.limit => octets,
            _ => message.truncate().to_vec().unwrap_or_default(),
        }
    }

    /// The query for a name server: the question and what of the header and of EDNS concerns the answer. EDNS options are
    /// between two neighbours (RFC 6891, 6.1.1; cookies are made for one server), so they do not travel.
    pub(crate) fn forwarded(&self, id: u16) -> Vec<u8> {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = self.metadata.recursion_desired;
        message.metadata.checking_disabled = self.metadata.checking_disabled;
        message.metadata.authentic_data = self.metadata.authentic_data;
        message.add_query(self.query.clone());
        message.edns = self.edns.map(|dnssec_ok| {
            let mut edns = Edns::new();
            edns.set_max_payload(self.limit.min(UNFRAGMENTED) as u16).set_dnssec_ok(dnssec_ok);
            edns
        });
        message.to_vec().unwrap_or_default()
    }

    /// Reads what came back for [`Request::forwarded`] with `id`. `None`: it is no answer to it, whoever sent it.
    pub(crate) fn verify(&self, id: u16, octets: &[u8]) -> Option<Forwarded> {
        let &[id_high, id_low, flags, more_flags, questions_high, questions_low, answers_high, answers_low, ..] =
            octets
        else {
            return None;
        };
        let is_response = octets.len() >= HEADER && flags & 0xf8 == 0x80;
        if !is_response || u16::from_be_bytes([id_high, id_low]) != id {
            return None;
        }
        let code = more_flags & 0x0f;
        let mut decoder = BinDecoder::new(octets);
        decoder.read_slice(HEADER).ok()?;
        match u16::from_be_bytes([questions_high, questions_low]) {
            // Names compare without case: `Name`'s own equality does.
            1 => (Query::read(&mut decoder).ok()? == self.query).then_some(())?,
            // Some servers say only that they will not.
            0 if !matches!(code, 0 | 3) && [answers_high, answers_low] == [0, 0] => {}
            _ => return None,
        }
        let mut octets = octets.to_vec();
        octets[..2].copy_from_slice(&self.metadata.id.to_be_bytes());
        Some(Forwarded { octets, code, truncated: flags & 0x02 != 0 })
    }

    /// The octets for the client of what a name server said.
    pub(crate) fn relay(&self, forwarded: Forwarded) -> Vec<u8> {
        if forwarded.octets.len() <= self.limit {
            return forwarded.octets;
        }
        let mut message = self.response(ResponseCode::from_low(forwarded.code));
        message.metadata.truncation = true;
        self.encode(&message)
    }
}

/// What a name server answered.
#[derive(Debug)]
pub(crate) struct Forwarded {
    /// With the client's id.
    octets: Vec<u8>,
    code: u8,
    pub(crate) truncated: bool,
}

impl Forwarded {
    /// The server cannot or will not say (SERVFAIL, NOTIMP, REFUSED): another may.
    pub(crate) fn is_failure(&self) -> bool {
        matches!(self.code, 2 | 4 | 5)
    }

    /// There is no such name (NXDOMAIN).
    pub(crate) fn is_no_name(&self) -> bool {
        self.code == 3
    }
}

#[cfg(test)]
#[path = "message_test.rs"]
mod message_test;
