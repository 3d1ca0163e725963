//! What sandboxes are told: services, tasks, aliases, addresses backwards, and what is left to name servers.

use std::sync::Arc;

use hickory_proto::rr::Name;
use proptest::prelude::*;

use super::*;
use crate::upstream::Upstream;
use crate::view::Network;
use crate::zone::{Endpoint, EndpointId, Service, ServiceId, Serving};

fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    texts.iter().map(|text| text.parse().unwrap()).collect()
}

fn strings(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|&text| text.to_owned()).collect()
}

/// `web` with a virtual address, `db` with dnsrr and an alias, 10.0.<number>.0/24.
fn network(name: &str, number: u8) -> Arc<Network> {
    let network = Network::new(name, &[(IpAddr::from([10, 0, number, 0]), 24)]);
    network.change(|zone| {
        let vip = IpAddr::from([10, 0, number, 2]);
        zone.put_service(ServiceId([1; 16]), &Service { names: strings(&["web"]), virtual_addresses: vec![vip] });
        zone.put_service(
            ServiceId([2; 16]),
            &Service { names: strings(&["db", "store.db"]), virtual_addresses: vec![] },
        );
        for task in 10..20 {
            let row = Endpoint {
                service: Some(ServiceId([2; 16])),
                addresses: vec![[10, 0, number, task].into()],
                names: vec![format!("db.{task}.x")],
                serving: if task < 18 { Serving::Yes } else { Serving::No },
            };
            zone.put_endpoint(EndpointId([task; 16]), &row);
        }
    });
    network
}

fn outside(view: View) -> View {
    view.upstream(Upstream::Host)
}

fn ask(view: &View, name: &str, kind: RecordType) -> Decision {
    ask_with(view, name, kind, 7)
}

fn ask_with(view: &View, name: &str, kind: RecordType, seed: u64) -> Decision {
    let name = Name::from_ascii(name).unwrap();
    let mut name = name;
    name.set_fqdn(true);
    decide(view, &Question { name: &name, kind, class: DNSClass::IN, room: 100 }, seed)
}

fn answered(texts: &[&str]) -> Decision {
    Decision::Answer(Answer::Addresses(addresses(texts)))
}

fn sorted(decision: Decision) -> Vec<IpAddr> {
    match decision {
        Decision::Answer(Answer::Addresses(mut addresses)) => {
            addresses.sort();
            addresses
        }
        other => panic!("{other:?}"),
    }
}

const NO_DATA: Decision = Decision::Answer(Answer::NoData);
const NO_NAME: Decision = Decision::Answer(Answer::NoName);

#[test]
fn services_tasks_and_aliases_are_answered_whatever_the_case() {
    let view = outside(View::new(vec![network("one", 1)]));
    assert_eq!(ask(&view, "wEb", RecordType::A), answered(&["10.0.1.2"]));
    for name in ["db", "DB", "store.db", "tasks.db", "Tasks.Store.DB", "db.one"] {
        let expected: Vec<IpAddr> = (10..18).map(|task| IpAddr::from([10, 0, 1, task])).collect();
        assert_eq!(sorted(ask(&view, name, RecordType::A)), expected, "{name}");
    }
    assert_eq!(ask(&view, "db.12.x", RecordType::A), answered(&["10.0.1.12"]));
    assert_eq!(ask(&view, "db.12.x.one", RecordType::ANY), answered(&["10.0.1.12"]));
    // No tasks of `web` serve: the name is there all the same.
    assert_eq!(ask(&view, "tasks.web", RecordType::A), NO_DATA);
}

#[test]
fn a_name_without_data_of_a_type_exists_and_stays_here() {
    let view = outside(View::new(vec![network("one", 1)]));
    for kind in [RecordType::AAAA, RecordType::MX, RecordType::SRV, RecordType::HTTPS, RecordType::Unknown(4711)] {
        assert_eq!(ask(&view, "web", kind), NO_DATA, "{kind}");
        assert_eq!(ask(&view, "db", kind), NO_DATA, "{kind}");
        assert_eq!(ask(&view, "db.19.x", kind), NO_DATA, "{kind}");
    }
    assert_eq!(ask(&view, "db.19.x", RecordType::A), NO_DATA, "it does not serve");
    for kind in [RecordType::AXFR, RecordType::IXFR, RecordType::TSIG, RecordType::OPT] {
        assert_eq!(ask(&view, "web", kind), Decision::Answer(Answer::NotImplemented), "{kind}");
    }
    let name = Name::from_ascii("version.bind.").unwrap();
    let chaos = Question { name: &name, kind: RecordType::TXT, class: DNSClass::CH, room: 1 };
    assert_eq!(decide(&view, &chaos, 0), Decision::Answer(Answer::Refused));
}

#[test]
fn what_is_not_ours_is_asked_for_outside_or_does_not_exist() {
    let inside = View::new(vec![network("one", 1)]);
    let outside = outside(inside.clone());
    for name in ["example.org", "unknown", "tasks.unknown", "web.example.org", "web.two", "", "two.web"] {
        for kind in [RecordType::A, RecordType::MX] {
            assert_eq!(ask(&outside, name, kind), Decision::Ask, "{name}");
            assert_eq!(ask(&inside, name, kind), NO_NAME, "{name}");
        }
    }
    // Octets that no row can have.
    let mut name = Name::from_labels([b"w\xc3\xa9b".as_slice(), b"a b"]).unwrap();
    name.set_fqdn(true);
    let question = Question { name: &name, kind: RecordType::A, class: DNSClass::IN, room: 1 };
    assert_eq!((decide(&outside, &question, 0), decide(&inside, &question, 0)), (Decision::Ask, NO_NAME));
}

#[test]
fn a_sandbox_sees_its_own_networks_only_and_the_first_first() {
    let (one, two) = (network("one", 1), network("two", 2));
    two.change(|zone| {
        let row = Service { names: strings(&["only"]), virtual_addresses: addresses(&["fd00::2"]) };
        zone.put_service(ServiceId([9; 16]), &row);
    });
    let both = outside(View::new(vec![Arc::clone(&two), Arc::clone(&one)]));
    assert_eq!(ask(&both, "web", RecordType::A), answered(&["10.0.2.2"]));
    assert_eq!(ask(&both, "web.one", RecordType::A), answered(&["10.0.1.2"]));
    assert_eq!(ask(&both, "only", RecordType::AAAA), answered(&["fd00::2"]));
    let first = outside(View::new(vec![one]));
    assert_eq!(ask(&first, "only", RecordType::AAAA), Decision::Ask);
    assert_eq!(ask(&first, "web.two", RecordType::A), Decision::Ask);
    assert_eq!(ask(&first, "2.2.0.10.in-addr.arpa", RecordType::PTR), Decision::Ask);
    // A name is one service's: no addresses of another family from the next network.
    two.change(|zone| {
        let row = Service { names: strings(&["web"]), virtual_addresses: addresses(&["fd00::9"]) };
        zone.put_service(ServiceId([1; 16]), &row);
    });
    assert_eq!(ask(&both, "web", RecordType::A), NO_DATA);
}

#[test]
fn its_own_names_lead_to_it_first_and_always() {
    let own = addresses(&["10.0.1.19", "10.0.2.19", "fd00::19"]);
    let view = outside(View::new(vec![network("one", 1)]).own(&strings(&["Web", "db.19.x"]), &own));
    for seed in 0..20 {
        assert_eq!(ask_with(&view, "web", RecordType::A, seed), answered(&["10.0.1.19", "10.0.2.19"]));
    }
    assert_eq!(ask(&view, "db.19.x", RecordType::AAAA), answered(&["fd00::19"]));
    let pointer = Decision::Answer(Answer::Pointer("web".to_owned()));
    assert_eq!(ask(&view, "19.2.0.10.in-addr.arpa", RecordType::PTR), pointer);
}

#[test]
fn a_search_domain_gives_way_to_the_name_servers_where_there_are_any() {
    let inside = View::new(vec![network("one", 1)]).search(&strings(&["Example.org", "svc.test."]));
    let outside = outside(inside.clone());
    for (name, expected) in
        [("web.example.org", "10.0.1.2"), ("WEB.svc.test", "10.0.1.2"), ("db.12.x.svc.test", "10.0.1.12")]
    {
        assert_eq!(ask(&inside, name, RecordType::A), answered(&[expected]));
        assert_eq!(ask(&outside, name, RecordType::A), Decision::AskOr(Answer::Addresses(addresses(&[expected]))));
        assert_eq!(ask(&outside, name, RecordType::AAAA), Decision::AskOr(Answer::NoData));
    }
    assert_eq!(ask(&outside, "unknown.example.org", RecordType::A), Decision::Ask);
    assert_eq!(ask(&outside, "webexample.org", RecordType::A), Decision::Ask);
    assert_eq!(ask(&outside, "example.org", RecordType::A), Decision::Ask);
}

#[test]
fn with_ndots_single_labels_stay_here() {
    let with = |options: &[&str]| outside(View::new(vec![network("one", 1)]).options(&strings(options)));
    for options in [&[] as &[&str], &["ndots:0"], &["ndots:2", "ndots:0"], &["ndots:x"], &["timeout:1"]] {
        assert_eq!(ask(&with(options), "printer", RecordType::A), Decision::Ask, "{options:?}");
    }
    let view = with(&["timeout:1", "ndots:1"]);
    assert_eq!(ask(&view, "printer", RecordType::A), NO_NAME);
    assert_eq!(ask(&view, "printer", RecordType::AAAA), NO_NAME);
    assert_eq!(ask(&view, "web", RecordType::A), answered(&["10.0.1.2"]));
    assert_eq!(ask(&view, "printer.example.org", RecordType::A), Decision::Ask);
    assert_eq!(ask(&view, "org", RecordType::DS), Decision::Ask, "a validating resolver in the sandbox");
    assert_eq!(ask(&view, "", RecordType::NS), Decision::Ask);
}

#[test]
fn addresses_have_names() {
    let view = outside(View::new(vec![network("one", 1)]));
    let pointer = |name: &str| Decision::Answer(Answer::Pointer(name.to_owned()));
    assert_eq!(ask(&view, "2.1.0.10.in-addr.arpa", RecordType::PTR), pointer("web"));
    assert_eq!(ask(&view, "12.1.0.10.IN-ADDR.arpa", RecordType::ANY), pointer("db.12.x"));
    assert_eq!(
        ask(&view, "19.1.0.10.in-addr.arpa", RecordType::PTR),
        pointer("db.19.x"),
        "also while it does not serve"
    );
    assert_eq!(ask(&view, "2.1.0.10.in-addr.arpa", RecordType::TXT), NO_DATA);
    assert_eq!(ask(&view, "99.1.0.10.in-addr.arpa", RecordType::PTR), NO_NAME, "ours, and nobody's");
    assert_eq!(ask(&view, "1.2.0.10.in-addr.arpa", RecordType::PTR), Decision::Ask);
    assert_eq!(ask(&view, "1.0.10.in-addr.arpa", RecordType::PTR), Decision::Ask, "no address");
    assert_eq!(ask(&view, "1.0.0.127.in-addr.arpa", RecordType::PTR), pointer("localhost"));
    let loopback = format!("1.{}ip6.arpa", "0.".repeat(31));
    assert_eq!(ask(&view, &loopback, RecordType::PTR), pointer("localhost"));
}

#[test]
fn prefixes_of_any_length_hold_their_addresses() {
    let holds = |subnet: &str, bits, address: &str| {
        Network::new("n", &[(subnet.parse().unwrap(), bits)]).contains(address.parse().unwrap())
    };
    assert!(holds("10.0.1.0", 24, "10.0.1.255") && !holds("10.0.1.0", 24, "10.0.2.0"));
    assert!(holds("10.0.1.1", 32, "10.0.1.1") && !holds("10.0.1.1", 32, "10.0.1.0"));
    assert!(holds("0.0.0.0", 0, "192.0.2.1") && !holds("0.0.0.0", 0, "::"));
    assert!(holds("fd00::", 64, "fd00::1:2") && !holds("fd00::", 64, "fd00:0:0:1::"));
    assert!(holds("::", 0, "fd00::1") && holds("fd00::1", 128, "fd00::1"));
}

#[test]
fn localhost_is_here() {
    let view = outside(View::new(vec![network("one", 1)]));
    assert_eq!(ask(&view, "LocalHost", RecordType::A), answered(&["127.0.0.1"]));
    assert_eq!(ask(&view, "a.localhost", RecordType::AAAA), answered(&["::1"]));
    assert_eq!(ask(&view, "localhost", RecordType::MX), NO_DATA);
    assert_eq!(ask(&view, "nolocalhost", RecordType::A), Decision::Ask);
}

#[test]
fn every_task_comes_first_about_as_often() {
    let view = View::new(vec![network("one", 1)]);
    let mut first = std::collections::HashMap::new();
    for seed in 0..8000_u64 {
        // As the server draws them.
        let seed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let Decision::Answer(Answer::Addresses(addresses)) = ask_with(&view, "db", RecordType::A, seed) else {
            panic!("db has addresses");
        };
        *first.entry(addresses[0]).or_insert(0) += 1;
    }
    assert_eq!(first.len(), 8);
    // Five standard deviations of a binomial with 8000 and 1/8 are 148.
    assert!(first.values().all(|&count| (850..1150).contains(&count)), "{first:?}");
}

#[test]
fn a_network_can_be_replaced_as_a_whole() {
    let network = network("one", 1);
    let view = outside(View::new(vec![Arc::clone(&network)]));
    let mut zone = crate::zone::Zone::default();
    zone.put_service(
        ServiceId([3; 16]),
        &Service { names: strings(&["new"]), virtual_addresses: addresses(&["10.0.1.9"]) },
    );
    network.replace(zone);
    assert_eq!(ask(&view, "web", RecordType::A), Decision::Ask);
    assert_eq!(ask(&view, "new", RecordType::A), answered(&["10.0.1.9"]));
}

proptest! {
    #[test]
    fn names_of_ours_never_leave(
        name in "(web|db|store\\.db|tasks\\.db|tasks\\.web|db\\.1[0-9]\\.x|localhost)(\\.one)?",
        kind in any::<u16>(),
        ndots in 0_u8..3,
    ) {
        prop_assume!(!name.starts_with("localhost."));
        let view = outside(View::new(vec![network("one", 1)]).options(&[format!("ndots:{ndots}")]));
        prop_assert!(matches!(ask(&view, &name, RecordType::from(kind)), Decision::Answer(answer) if answer != Answer::NoName));
    }

    #[test]
    fn shuffling_keeps_the_addresses(room in 0_usize..12, seed in any::<u64>()) {
        let view = View::new(vec![network("one", 1)]);
        let name = Name::from_ascii("db.").unwrap();
        let decision = decide(&view, &Question { name: &name, kind: RecordType::A, class: DNSClass::IN, room }, seed);
        prop_assert_eq!(sorted(decision).len(), 8);
    }
}
