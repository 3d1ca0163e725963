//! What `nft list ruleset` shows is what was meant.

use skep_netlink::nft::{
    BaseChain, ChainType, ConnectionState, Content, Element, Family, Field, Hook, Rule, Selector, Set, Table,
    Transaction, Transport, Value, Verdict,
};
use skep_netlink::{MacAddress, Prefix};

use crate::lab::{Place, lines, root, run, text};

fn prefix(text: &str) -> Prefix {
    text.parse().unwrap()
}

/// Every method of the builder, in a table of IPv4.
fn of_ipv4(transaction: &mut Transaction) {
    let table = Table::new(Family::Ip, "skep");
    let rule = || Rule::new(Family::Ip);
    let mac = MacAddress([2, 0x42, 0, 0, 0, 1]);
    transaction.add_table(&table);
    transaction.add_set(&table, &Set { size: Some(100), ..Set::new("allowed", &[Field::Ip4, Field::Port]) });
    let address: std::net::IpAddr = [10, 0, 0, 1].into();
    transaction.add_elements(&table, "allowed", &[Element::new(Value::new().ip(address).port(443))]);
    transaction.add_set(&table, &Set::map("nodes", &[Field::Mac], &[Field::Mark]));
    transaction.add_elements(&table, "nodes", &[Element::value(Value::new().mac(mac), Value::new().number(7))]);
    let forward = BaseChain { drop: true, ..BaseChain::new(ChainType::Filter, Hook::Forward, 0) };
    transaction.add_base_chain(&table, "forward", forward);
    transaction.add_base_chain(&table, "input", BaseChain::new(ChainType::Filter, Hook::Input, -150));
    transaction.add_base_chain(&table, "marks", BaseChain::new(ChainType::Route, Hook::Output, -150));
    transaction.add_base_chain(&table, "first", BaseChain::new(ChainType::Filter, Hook::Prerouting, -150));
    transaction.add_base_chain(&table, "nat", BaseChain::new(ChainType::Nat, Hook::Postrouting, 100));
    transaction.add_base_chain(&table, "dnat", BaseChain::new(ChainType::Nat, Hook::Prerouting, -100));
    transaction.add_chain(&table, "refuse");

    let known = ConnectionState::ESTABLISHED.or(ConnectionState::RELATED);
    let forward = [
        rule().state(known).verdict(Verdict::Accept),
        rule().state(ConnectionState::INVALID).counter().verdict(Verdict::Drop),
        rule().input_device("eth0").output_device_not("br0").verdict(Verdict::Jump("refuse".into())),
        rule().input_device_not("eth0").output_device("br0").verdict(Verdict::Goto("refuse".into())),
        rule().source(prefix("10.1.2.3/8")).destination(prefix("192.0.2.1/32")).verdict(Verdict::Return),
        rule().source_not(prefix("10.1.16.0/20")).destination_not(prefix("192.0.2.0/25")).verdict(Verdict::Accept),
        rule().in_set(&[Selector::Ip4Destination, Selector::DestinationPort], "allowed").verdict(Verdict::Accept),
        rule().not_in_set(&[Selector::Ip4Destination, Selector::DestinationPort], "allowed").verdict(Verdict::Drop),
        rule().destination_port(Transport::Udp, 4789).verdict(Verdict::Drop).comment("only \"through\" the fabric"),
        rule().direction(true).ct_mark(3).verdict(Verdict::Accept),
    ];
    forward.iter().for_each(|rule| transaction.add_rule(&table, "forward", rule));
    transaction.add_rule(&table, "input", &rule().mark(0x10).limit(10, 7).verdict(Verdict::Accept));
    transaction.add_rule(&table, "input", &rule().protocol(Transport::Tcp).verdict(Verdict::Accept));
    transaction.add_rule(&table, "refuse", &rule().reject());
    transaction.add_rule(&table, "marks", &rule().restore_mark());
    transaction.add_rule(&table, "marks", &rule().set_mark(9));
    let node = rule().state(ConnectionState::NEW).set_ct_mark_of(&[Selector::EtherSource], "nodes");
    transaction.add_rule(&table, "first", &node);
    let nat = rule().was_redirected().output_device("ing").masquerade();
    transaction.add_rule(&table, "nat", &nat);
    transaction.add_rule(&table, "nat", &rule().source(prefix("10.0.0.0/24")).source_nat([192, 0, 2, 9].into()));
    let to = rule().local_destination().destination_port(Transport::Tcp, 80);
    transaction.add_rule(&table, "dnat", &to.clone().destination_nat([10, 0, 0, 2].into(), Some(8080)));
    transaction.add_rule(&table, "dnat", &to.destination_nat([10, 0, 0, 2].into(), None));
}

/// Both families in one table, and IPv6.
fn of_the_others(transaction: &mut Transaction) {
    let table = Table::new(Family::Inet, "skep");
    let rule = || Rule::new(Family::Inet);
    transaction.add_table(&table);
    transaction.add_base_chain(&table, "input", BaseChain::new(ChainType::Filter, Hook::Input, 0));
    let both = [
        rule().source(prefix("10.0.0.1/32")).destination(prefix("10.0.0.2/32")).verdict(Verdict::Accept),
        rule().source(prefix("fd00::/8")).destination_port(Transport::Udp, 51820).verdict(Verdict::Accept),
        rule().reject(),
    ];
    both.iter().for_each(|rule| transaction.add_rule(&table, "input", rule));

    let table = Table::new(Family::Ip6, "skep");
    transaction.add_table(&table);
    transaction.add_base_chain(&table, "nat", BaseChain::new(ChainType::Nat, Hook::Prerouting, -100));
    let address = "fd00::2".parse().unwrap();
    let rule = || Rule::new(Family::Ip6);
    let to = rule().destination(prefix("fd00::1/128")).destination_port(Transport::Tcp, 80);
    transaction.add_rule(&table, "nat", &to.destination_nat(address, Some(8080)));
    transaction.add_set(&table, &Set::new("macs", &[Field::Mac]));
    let one = rule().protocol(Transport::Tcp).random_destination(2, "backends", true, true);
    transaction.add_set(&table, &Set::map("backends", &[Field::Number], &[Field::Ip6, Field::Port]));
    transaction.add_elements(
        &table,
        "backends",
        &[
            Element::value(Value::new().number(0), Value::new().ip(address).port(81)),
            Element::value(Value::new().number(1), Value::new().ip(address).port(82)),
        ],
    );
    transaction.add_rule(&table, "nat", &one);
    transaction.add_rule(&table, "nat", &rule().in_set(&[Selector::EtherSource], "macs").reject());
}

#[test]
fn the_listing_shows_what_was_meant() {
    if !root() {
        return;
    }
    let place = Place::new();
    let mut transaction = Transaction::new();
    of_ipv4(&mut transaction);
    of_the_others(&mut transaction);
    place.nft.commit(&transaction).unwrap();
    assert_eq!(lines(&place.ruleset()), lines(include_str!("ruleset.nft")));
    let tables: Vec<String> = place.nft.tables().unwrap().iter().map(ToString::to_string).collect();
    assert_eq!(tables, ["ip skep", "inet skep", "ip6 skep"]);
    // What is read back is what the transaction says by itself, until somebody changes it.
    let (meant, there) = (Content::of(&transaction), place.nft.content("skep").unwrap());
    for (name, table) in &meant.tables {
        assert_eq!(table.differences(there.tables.get(name)), [], "{name}");
    }
    assert!(there.tables["ip skep"].chains["forward"].drop && !there.tables["ip skep"].chains["input"].drop);
    let rules = there.tables["ip skep"].chains["forward"].rules.as_ref().unwrap();
    assert!(rules.iter().any(|rule| rule.text.starts_with(b"eth0")), "{rules:?}");
    run(&place.namespace, "nft flush chain ip skep marks");
    run(&place.namespace, "nft flush set ip skep allowed");
    let there = place.nft.content("skep").unwrap();
    let found: Vec<String> =
        meant.tables["ip skep"].differences(there.tables.get("ip skep")).iter().map(ToString::to_string).collect();
    assert_eq!(found, ["has 0 rules in chain marks instead of 2", "lacks 1 elements of allowed"]);
    // Removed one by one, also where there is none.
    let mut transaction = Transaction::new();
    for family in [Family::Ip, Family::Ip6, Family::Inet, Family::Inet] {
        transaction.remove_table(&Table::new(family, "skep"));
    }
    place.nft.commit(&transaction).unwrap();
    assert_eq!(place.ruleset(), "");
}

#[test]
fn rules_are_replaced_and_deleted_by_handle() {
    if !root() {
        return;
    }
    let place = Place::new();
    let table = Table::new(Family::Ip, "skep");
    let rule = |port| Rule::new(Family::Ip).destination_port(Transport::Tcp, port).verdict(Verdict::Accept);
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_chain(&table, "c");
    (1..=3).for_each(|port| transaction.add_rule(&table, "c", &rule(port)));
    place.nft.commit(&transaction).unwrap();
    let handles = place.nft.rule_handles(&table, "c").unwrap();
    assert_eq!(handles.len(), 3);
    let mut transaction = Transaction::new();
    transaction.replace_rule(&table, "c", handles[1], &rule(22));
    transaction.delete_rule(&table, "c", handles[0]);
    place.nft.commit(&transaction).unwrap();
    let listed = place.ruleset();
    assert_eq!(lines(&listed)[2..4], ["tcp dport 22 accept", "tcp dport 3 accept"]);
    let mut transaction = Transaction::new();
    transaction.flush_chain(&table, "c");
    transaction.add_rule(&table, "c", &rule(5));
    place.nft.commit(&transaction).unwrap();
    assert_eq!(lines(&place.ruleset())[2..4], ["tcp dport 5 accept", "}"]);
    let mut transaction = Transaction::new();
    transaction.delete_chain(&table, "c");
    place.nft.commit(&transaction).unwrap();
    assert_eq!(place.ruleset(), "table ip skep {\n}\n");
}

#[test]
fn all_or_nothing() {
    if !root() {
        return;
    }
    let place = Place::new();
    let table = Table::new(Family::Ip, "skep");
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_chain(&table, "c");
    transaction.delete_set(&table, "nothing");
    transaction.add_rule(&table, "nowhere", &Rule::new(Family::Ip).verdict(Verdict::Accept));
    transaction.add_chain(&table, "d");
    let error = place.nft.commit(&transaction).unwrap_err();
    assert!(error.is_absent());
    assert_eq!(text(&error), "cannot delete set nothing in table ip skep: No such file or directory");
    assert_eq!(place.ruleset(), "");

    // A loop is only found at the end, by looking at the whole.
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_base_chain(&table, "input", BaseChain::new(ChainType::Filter, Hook::Input, 0));
    transaction.add_chain(&table, "c");
    for chain in ["input", "c"] {
        transaction.add_rule(&table, chain, &Rule::new(Family::Ip).verdict(Verdict::Jump("c".into())));
    }
    let error = place.nft.commit(&transaction).unwrap_err();
    assert_eq!(error.errno(), Some(nix::errno::Errno::EMLINK), "{}", text(&error));
    assert_eq!(place.ruleset(), "");

    // The handle works on, and 10,000 elements take one transaction.
    let mut transaction = Transaction::new();
    transaction.add_table(&table);
    transaction.add_set(&table, &Set::new("many", &[Field::Ip4, Field::Protocol, Field::Port]));
    let elements: Vec<Element> = (0..10_000u32)
        .map(|n| Value::new().ip(std::net::Ipv4Addr::from(n).into()).protocol(Transport::Tcp).port(80))
        .map(Element::new)
        .collect();
    transaction.add_elements(&table, "many", &elements);
    place.nft.commit(&transaction).unwrap();
    assert_eq!(place.nft.count_elements(&table, "many").unwrap(), 10_000);
    let mut transaction = Transaction::new();
    transaction.delete_elements(&table, "many", &elements[1..]);
    place.nft.commit(&transaction).unwrap();
    assert_eq!(place.nft.count_elements(&table, "many").unwrap(), 1);
    let mut transaction = Transaction::new();
    transaction.flush_set(&table, "many");
    place.nft.commit(&transaction).unwrap();
    assert_eq!(place.nft.count_elements(&table, "many").unwrap(), 0);
}

#[test]
fn an_owned_table_goes_with_its_handle() {
    if !root() {
        return;
    }
    let place = Place::new();
    let table = Table::new(Family::Ip, "mine");
    let mut own = Transaction::new();
    own.add_owned_table(&table);
    let owner = place.inside(|inside| inside.nft().unwrap());
    owner.commit(&own).unwrap();
    assert_eq!(place.nft.tables().unwrap(), std::slice::from_ref(&table));
    let mut change = Transaction::new();
    change.add_chain(&table, "c");
    assert_eq!(place.nft.commit(&change).unwrap_err().errno(), Some(nix::errno::Errno::EPERM));
    owner.commit(&change).unwrap();
    drop(owner);
    // The kernel removes it when the last descriptor is closed, which is now.
    assert_eq!(place.nft.tables().unwrap(), []);
}
