//! Messages on the wire, there and back, and whatever bytes a client sends.

use std::net::Ipv4Addr;

use hickory_proto::rr::Name;
use hickory_proto::rr::rdata::A;
use proptest::prelude::*;

use super::*;

fn query(name: &str, kind: RecordType, edns: Option<u16>) -> Message {
    let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    let mut name = Name::from_ascii(name).unwrap();
    name.set_fqdn(true);
    message.add_query(Query::query(name, kind));
    message.edns = edns.map(|size| {
        let mut edns = Edns::new();
        edns.set_max_payload(size).set_dnssec_ok(true);
        edns
    });
    message
}

fn request(message: &Message, transport: Transport) -> Request {
    match parse(&message.to_vec().unwrap(), transport) {
        Parsed::Request(request) => request,
        other => panic!("{other:?}"),
    }
}

fn addresses(count: u32) -> Answer {
    Answer::Addresses((0..count).map(|number| Ipv4Addr::from(0x0a00_0000 + number).into()).collect())
}

fn code_of(octets: &[u8]) -> ResponseCode {
    match parse(octets, Transport::Udp) {
        Parsed::Reply(reply) => Message::from_vec(&reply).unwrap().metadata.response_code,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_answer_repeats_the_question_and_edns() {
    let request = request(&query("WeB", RecordType::A, Some(4096)), Transport::Udp);
    let reply = Message::from_vec(&request.answer(&addresses(2))).unwrap();
    let flags = reply.metadata;
    assert_eq!((reply.metadata.id, reply.metadata.message_type), (0x1234, MessageType::Response));
    assert!(flags.authoritative && flags.recursion_available && flags.recursion_desired && !flags.truncation);
    assert!(reply.queries[0].name().eq_case(&Name::from_ascii("WeB.").unwrap()));
    assert_eq!(reply.answers.len(), 2);
    assert!(reply.answers.iter().all(|record| record.ttl == 0 && record.dns_class == DNSClass::IN));
    let edns = reply.edns.unwrap();
    assert!(edns.flags().dnssec_ok && edns.max_payload() == 4096);
}

#[test]
fn no_data_and_no_name_are_told_apart() {
    let request = request(&query("web", RecordType::AAAA, None), Transport::Udp);
    let codes = [Answer::NoData, Answer::NoName, Answer::Refused, Answer::NotImplemented].map(|answer| {
        let reply = Message::from_vec(&request.answer(&answer)).unwrap();
        assert!(reply.answers.is_empty() && reply.edns.is_none());
        // glibc skips a server that answers with nothing and neither AA nor RA.
        assert!(reply.metadata.recursion_available);
        reply.metadata.response_code
    });
    assert_eq!(codes, [ResponseCode::NoError, ResponseCode::NXDomain, ResponseCode::Refused, ResponseCode::NotImp]);
    let failure = Message::from_vec(&request.failure()).unwrap();
    assert_eq!(failure.metadata.response_code, ResponseCode::ServFail);
}

#[test]
fn long_answers_are_cut_over_udp_and_whole_over_tcp() {
    for (edns, fits) in [(None, (512 - 12 - 8) / 16), (Some(1232), (1232 - 12 - 8 - 11) / 16), (Some(100), 30)] {
        let message = query("db", RecordType::A, edns);
        let udp = request(&message, Transport::Udp);
        let cut = udp.answer(&addresses(200));
        let limit = usize::from(edns.unwrap_or(512).max(512));
        assert!(cut.len() <= limit && cut.len() > limit - 16, "{} of {limit}", cut.len());
        let cut = Message::from_vec(&cut).unwrap();
        assert!(cut.metadata.truncation);
        assert_eq!((cut.answers.len(), cut.edns.is_some()), (fits, edns.is_some()));
        let whole = udp.answer(&addresses(fits as u32));
        assert!(!Message::from_vec(&whole).unwrap().metadata.truncation);
        let tcp = Message::from_vec(&request(&message, Transport::Tcp).answer(&addresses(200))).unwrap();
        assert_eq!((tcp.answers.len(), tcp.metadata.truncation), (200, false));
    }
    // As many as TCP can carry at all, of both families where both are asked for.
    let both = Answer::Addresses(vec![Ipv4Addr::LOCALHOST.into(), std::net::Ipv6Addr::LOCALHOST.into()]);
    let reply = request(&query("db", RecordType::ANY, Some(1232)), Transport::Udp).answer(&both);
    let data: Vec<_> =
        Message::from_vec(&reply).unwrap().answers.into_iter().filter_map(|record| record.data.ip_addr()).collect();
    assert_eq!(Answer::Addresses(data), both);
    let tcp = request(&query("db", RecordType::A, None), Transport::Tcp).answer(&addresses(10_000));
    let answers = Message::from_vec(&tcp).unwrap().answers.len();
    assert!(tcp.len() > 65_500 && tcp[2] & 2 == 0 && answers == (65_535 - 12 - 8) / 16, "{} {answers}", tcp.len());
}

#[test]
fn what_is_no_single_question_is_refused() {
    let good = query("web", RecordType::A, None).to_vec().unwrap();
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut octets = good.clone();
        change(&mut octets);
        octets
    };
    for op_code in [1, 2, 4, 5, 6, 15] {
        assert_eq!(code_of(&with(&|octets| octets[2] |= op_code << 3)), ResponseCode::NotImp);
    }
    assert_eq!(code_of(&with(&|octets| octets[5] = 0)), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets[5] = 2)), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets[4] = 255)), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets.truncate(14))), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets[7] = 1)), ResponseCode::FormErr);
    // More records than any query has.
    assert_eq!(code_of(&with(&|octets| octets[9] = 1)), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets[11] = 3)), ResponseCode::FormErr);
    // A label that points at itself.
    assert_eq!(code_of(&with(&|octets| octets[12..14].copy_from_slice(&[0xc0, 12]))), ResponseCode::FormErr);
    assert_eq!(code_of(&with(&|octets| octets.resize(LONGEST_QUERY + 1, 0))), ResponseCode::FormErr);
    assert!(matches!(parse(&with(&|octets| octets[2] |= 0x80), Transport::Udp), Parsed::Drop));
    assert!(matches!(parse(&good[..11], Transport::Udp), Parsed::Drop));
    assert!(matches!(parse(&[], Transport::Tcp), Parsed::Drop));
}

#[test]
fn edns_of_another_version_is_refused_in_its_own_terms() {
    let mut message = query("web", RecordType::A, Some(1232));
    message.edns.as_mut().unwrap().set_version(1);
    let Parsed::Reply(reply) = parse(&message.to_vec().unwrap(), Transport::Udp) else { panic!("a reply") };
    let reply = Message::from_vec(&reply).unwrap();
    assert_eq!(u16::from(reply.metadata.response_code), 16);
    assert_eq!(reply.edns.unwrap().version(), 0);
    // Two OPT records.
    let mut twice = query("web", RecordType::A, Some(1232)).to_vec().unwrap();
    let opt = twice[twice.len() - OPT..].to_vec();
    twice.extend(opt);
    twice[11] = 2;
    assert_eq!(code_of(&twice), ResponseCode::FormErr);
}

#[test]
fn a_forwarded_query_carries_the_question_and_not_the_options() {
    let mut message = query("Example.org", RecordType::Unknown(65_280), Some(4096));
    message.metadata.checking_disabled = true;
    let cookie = hickory_proto::rr::rdata::opt::EdnsOption::Unknown(10, vec![7; 8]);
    message.edns.as_mut().unwrap().options_mut().insert(cookie);
    let request = request(&message, Transport::Udp);
    let sent = Message::from_vec(&request.forwarded(77)).unwrap();
    assert_eq!((sent.metadata.id, &sent.queries), (77, &message.queries));
    assert!(sent.metadata.recursion_desired && sent.metadata.checking_disabled);
    let edns = sent.edns.unwrap();
    assert!(edns.flags().dnssec_ok && edns.max_payload() == 1232 && edns.options().as_ref().is_empty());
}

/// What a server answers to `asked`.
fn response(asked: &[u8], change: impl FnOnce(&mut Message)) -> Vec<u8> {
    let mut message = Message::from_vec(asked).unwrap().into_response();
    change(&mut message);
    message.to_vec().unwrap()
}

#[test]
fn only_the_answer_to_the_question_is_believed() {
    let request = request(&query("example.org", RecordType::A, None), Transport::Udp);
    let asked = request.forwarded(77);
    let good = response(&asked, |_| {});
    let forwarded = request.verify(77, &good).unwrap();
    assert_eq!(forwarded.octets[..2], [0x12, 0x34], "the client's id");
    assert_eq!(forwarded.octets[2..], good[2..]);
    assert!(request.verify(78, &good).is_none());
    assert!(request.verify(77, &asked).is_none(), "our own query, sent back");
    assert!(request.verify(77, &good[..20]).is_none());
    assert!(request.verify(77, &[]).is_none());
    let other = |change: &dyn Fn(&mut Query)| response(&asked, |message| change(&mut message.queries[0]));
    assert!(request.verify(77, &other(&|query| query.name = Name::from_ascii("example.net.").unwrap())).is_none());
    assert!(request.verify(77, &other(&|query| query.query_type = RecordType::AAAA)).is_none());
    assert!(request.verify(77, &other(&|query| query.query_class = DNSClass::CH)).is_none());
    assert!(request.verify(77, &other(&|query| query.name = Name::from_ascii("EXAMPLE.org.").unwrap())).is_some());
    let empty = |code| {
        response(&asked, |message| {
            message.queries.clear();
            message.metadata.response_code = code;
        })
    };
    assert!(request.verify(77, &empty(ResponseCode::Refused)).unwrap().is_failure());
    assert!(request.verify(77, &empty(ResponseCode::NoError)).is_none());
    assert!(request.verify(77, &empty(ResponseCode::NXDomain)).is_none());
}

#[test]
fn a_server_that_sends_more_than_the_client_takes_is_cut() {
    let request = request(&query("example.org", RecordType::A, None), Transport::Udp);
    let long = response(&request.forwarded(77), |message| {
        let record = Record::from_rdata(message.queries[0].name().clone(), 60, RData::A(A(Ipv4Addr::LOCALHOST)));
        message.answers = vec![record; 100];
    });
    let reply = request.relay(request.verify(77, &long).unwrap());
    let reply = Message::from_vec(&reply).unwrap();
    assert!(reply.metadata.truncation && reply.answers.is_empty() && reply.queries.len() == 1);
}

/// A record of any type whose length is right, and whose data is noise.
fn record() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop_oneof![0_u16..70, 249_u16..262, any::<u16>()];
    let name = prop_oneof![Just(vec![0]), Just(vec![0xc0, 12]), Just(vec![1, b'a', 0])];
    (name, kind, any::<[u8; 6]>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(name, kind, rest, data)| {
        [name, kind.to_be_bytes().to_vec(), rest.to_vec(), (data.len() as u16).to_be_bytes().to_vec(), data].concat()
    })
}

fn octets() -> impl Strategy<Value = Vec<u8>> {
    let noise = || prop::collection::vec(any::<u8>(), 0..600);
    // Noise, noise behind a header that gets far, and a question with records.
    prop_oneof![
        noise(),
        (noise(), any::<[u8; 3]>()).prop_map(|(tail, counts)| {
            let mut octets = vec![1, 2, 1, 0, 0, 1, 0, counts[0] % 4, 0, counts[1] % 4, 0, counts[2] % 4];
            octets.extend(tail);
            octets
        }),
        (prop::collection::vec(record(), 0..4), any::<u16>(), 7_usize..12).prop_map(|(records, kind, section)| {
            let mut octets = vec![1, 2, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            octets[section | 1] = records.len() as u8;
            octets.extend([1, b'a', 0]);
            octets.extend(kind.to_be_bytes());
            octets.extend([0, 1]);
            octets.extend(records.concat());
            octets
        }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn any_octets_are_answered_within_limits_or_dropped(octets in octets(), tcp in any::<bool>(), count in 0_u32..5000) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        match parse(&octets, transport) {
            Parsed::Drop => {}
            Parsed::Reply(reply) => prop_assert_eq!(&reply[..2], &octets[..2]),
            Parsed::Request(request) => {
                for answer in [addresses(count), Answer::NoName, Answer::Pointer("a.b".to_owned())] {
                    let reply = request.answer(&answer);
                    prop_assert!(reply.len() <= request.limit && reply.len() >= HEADER);
                    Message::from_vec(&reply).unwrap();
                }
                prop_assert!(request.forwarded(9).len() >= HEADER);
                prop_assert!(request.verify(9, &octets).is_none());
            }
        }
    }

    #[test]
    fn a_changed_query_never_panics(
        name in "[a-z]{1,9}(\\.[a-z]{1,9}){0,3}",
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut octets = query(&name, RecordType::AAAA, Some(900)).to_vec().unwrap();
        let asked = request(&query(&name, RecordType::AAAA, Some(900)), Transport::Udp);
        for (place, value) in changes {
            let place = place.index(octets.len());
            octets[place] = value;
        }
        octets.truncate(cut.index(octets.len()) + 1);
        if let Parsed::Request(request) = parse(&octets, Transport::Udp) {
            prop_assert!(request.answer(&addresses(900)).len() <= request.limit);
        }
        octets.resize(octets.len().max(12), 0);
        octets[2] |= 0x80;
        if let Some(forwarded) = asked.verify(u16::from_be_bytes([octets[0], octets[1]]), &octets) {
            prop_assert!(asked.relay(forwarded).len() <= asked.limit);
        }
    }

    #[test]
    fn every_name_fits_its_answer(labels in prop::collection::vec("[a-z]{1,63}", 1..5), count in 0_u32..100) {
        let name = labels.join(".");
        prop_assume!(name.len() <= 253);
        let request = request(&query(&name, RecordType::A, Some(512)), Transport::Udp);
        let reply = request.answer(&addresses(count));
        prop_assert!(reply.len() <= 512);
        let reply = Message::from_vec(&reply).unwrap();
        prop_assert_eq!(reply.metadata.truncation, reply.answers.len() < count as usize);
    }
}
