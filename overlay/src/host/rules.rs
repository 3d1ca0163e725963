//! The tables of this instance in the host's namespace: published ports lead to their networks, and what comes from networks
//! gets the host's address. Pure.

use std::net::Ipv4Addr;

use skep_netlink::Prefix;
use skep_netlink::nft::{
    BaseChain, ChainType, Element, Family, Hook, Rule, Selector, Set, Table, Transaction, Value, Verdict,
};

use super::{Meant, Published};
use crate::plan::out;

/// The host's own loopback.
const LOOPBACK: Prefix = Prefix { address: std::net::IpAddr::V4(Ipv4Addr::new(127, 0, 0, 0)), length: 8 };
const LOOPBACK_V6: Prefix = Prefix { address: std::net::IpAddr::V6(std::net::Ipv6Addr::LOCALHOST), length: 128 };
/// Map from protocol and port to the chain of the network.
const PUBLISHED: &str = "published";

/// The table of an instance, of one family.
pub(super) fn table(instance: &str, ipv6: bool) -> Table {
    Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, format!("skep-{instance}"))
}

/// No tables.
pub(super) fn none(instance: &str) -> Transaction {
    let mut transaction = Transaction::new();
    for ipv6 in [false, true] {
        transaction.remove_table(&table(instance, ipv6));
    }
    transaction
}

/// All tables afresh.
pub(super) fn rules(instance: &str, meant: &Meant) -> Transaction {
    let mut transaction = Transaction::new();
    for ipv6 in [false, true] {
        if meant.forward[usize::from(ipv6)] {
            let table = table(instance, ipv6);
            transaction.reset_table(&table);
            lead_in(&mut transaction, &table, ipv6, meant);
            lead_out(&mut transaction, &table, ipv6);
        }
    }
    transaction
}

/// Connections to published ports, from outside and of the host itself.
fn lead_in(transaction: &mut Transaction, table: &Table, ipv6: bool, meant: &Meant) {
    let rule = || Rule::new(table.family);
    let key = [Selector::Protocol, Selector::DestinationPort];
    transaction.add_set(table, &Set::verdicts(PUBLISHED, &key.map(Selector::field)));
    for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
        transaction.add_base_chain(table, chain, BaseChain::new(ChainType::Nat, hook, -100));
        // From outside nobody may reach the loopback. What the host sends to its own loopback leads on as well, but for
        // IPv6: the kernel never lets ::1 out of its device.
        let rule = match (ipv6, hook) {
            (true, _) => rule().destination_not(LOOPBACK_V6),
            (false, Hook::Prerouting) => rule().destination_not(LOOPBACK),
            (false, _) => rule(),
        };
        transaction.add_rule(table, chain, &rule.local_destination().verdict_of(&key, PUBLISHED));
    }
    let of_family = || meant.ports.iter().filter(|(port, _)| port.ipv6 == ipv6);
    let mut indices: Vec<u16> = of_family().map(|(_, index)| *index).collect();
    indices.sort_unstable();
    indices.dedup();
    for index in indices {
        let chain = format!("to_{index}");
        transaction.add_chain(table, &chain);
        transaction.add_rule(table, &chain, &rule().destination_nat(out::inner(index, ipv6), None));
    }
    let element = |(port, index): (&Published, &u16)| {
        let key = Value::new().protocol(port.transport).port(port.port);
        Element::verdict(key, Verdict::Goto(format!("to_{index}")))
    };
    transaction.add_elements(table, PUBLISHED, &of_family().map(element).collect::<Vec<_>>());
    if !ipv6 {
        // Our devices may route 127.0.0.0/8, for answers to the host itself: those are known by the connection, and are for
        // another address still when they come.
        transaction.add_base_chain(table, "guard", BaseChain::new(ChainType::Filter, Hook::Prerouting, -300));
        let from_network = rule().input_device_prefix(out::DEVICES);
        transaction.add_rule(table, "guard", &from_network.destination(LOOPBACK).verdict(Verdict::Drop));
    }
}

/// What leaves networks, and what goes into them from where nobody inside could answer to.
fn lead_out(transaction: &mut Transaction, table: &Table, ipv6: bool) {
    let (rule, all) = (|| Rule::new(table.family), out::all(ipv6));
    transaction.add_base_chain(table, "postrouting", BaseChain::new(ChainType::Nat, Hook::Postrouting, 100));
    let to_network = || rule().output_device_prefix(out::DEVICES);
    // A task that reaches a port of its own host: its network would get a packet from its own address.
    transaction.add_rule(table, "postrouting", &rule().source(all).was_redirected().masquerade());
    // By device, not by destination: clouds have services at link-local addresses too (169.254.169.254).
    transaction.add_rule(table, "postrouting", &to_network().source(all).verdict(Verdict::Accept));
    transaction.add_rule(table, "postrouting", &rule().source(all).masquerade());
    if !ipv6 {
        transaction.add_rule(table, "postrouting", &to_network().source(LOOPBACK).masquerade());
    }
}
