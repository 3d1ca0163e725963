//! Load balancing: connections to a service go to a random backend, by connection tracking and a numbered map.
//!
//! A service has a chain with one rule, `dnat to numgen random mod N map @backends`, and a map from 0, 1, … N-1 to its
//! backends. [`Backends`] decides which number each one has, so that a change touches few of them whatever N is;
//! [`Balancer`] writes that into a transaction. Open connections stay where they are: only the first packet of one is
//! balanced. A service without backends refuses connections.
//!
//! The decision is pure and the transaction names no namespace: worked out once, it is committed in every namespace of a
//! network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::expression::Verdict;
use super::rule::{Rule, Selector};
use super::set::{Element, Set};
use super::transaction::{BaseChain, ChainType, Hook, Transaction};
use super::value::{Field, Transport, Value};
use super::{Family, Table};

/// Where connections to a service go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    /// Its address.
    pub address: IpAddr,
    /// Its port; `None`: the one that the connection was opened to.
    pub port: Option<u16>,
}

/// The backends of a service, each with its number.
#[derive(Debug, Clone, Default)]
pub struct Backends {
    numbered: Vec<Backend>,
    numbers: HashMap<Backend, usize>,
}

/// What is to be done to the numbered map when backends come and go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackendChange {
    /// Numbers that must go, or get another backend.
    pub clear: Vec<u32>,
    /// Numbers with the backend that they get.
    pub put: Vec<(u32, Backend)>,
    /// How many backends there are then.
    pub count: u32,
    /// Whether there were as many before: then the rule stays as it is.
    pub same_count: bool,
}

impl BackendChange {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.clear.is_empty() && self.put.is_empty()
    }
}

impl Backends {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// In the order of their numbers.
    pub fn list(&self) -> &[Backend] {
        &self.numbered
    }

    /// Adds and removes backends. Numbers that become free are given to new backends first, then to the last ones: a
    /// change of k backends touches at most 2k numbers.
    pub fn change(&mut self, add: &[Backend], remove: &[Backend]) -> BackendChange {
        let before = self.numbered.len();
        // What each touched number had before; `None`: it is new.
        let mut touched: BTreeMap<usize, Option<Backend>> = BTreeMap::new();
        let mut free: Vec<usize> = remove.iter().filter_map(|backend| self.numbers.remove(backend)).collect();
        for number in &free {
            touched.insert(*number, Some(self.numbered[*number]));
        }
        // The largest first in line to be taken by the last ones, the smallest to be given away.
        free.sort_unstable_by(|a, b| b.cmp(a));
        for backend in add {
            if self.numbers.contains_key(backend) {
                continue;
            }
            let number = free.pop().unwrap_or(self.numbered.len());
            match self.numbered.get_mut(number) {
                Some(slot) => *slot = *backend,
                None => {
                    touched.entry(number).or_insert(None);
                    self.numbered.push(*backend);
                }
            }
            self.numbers.insert(*backend, number);
        }
        // Free numbers are worked off from the largest: so the last one is never free itself when it moves.
        for number in free {
            let last = self.numbered.len() - 1;
            touched.entry(last).or_insert_with(|| Some(self.numbered[last]));
            self.numbered.swap_remove(number);
            if let Some(moved) = self.numbered.get(number) {
                self.numbers.insert(*moved, number);
            }
        }
        self.describe(&touched, before)
    }

    /// Makes these the backends, whatever they were.
    pub fn become_these(&mut self, wanted: &[Backend]) -> BackendChange {
        let set: HashSet<&Backend> = wanted.iter().collect();
        let gone: Vec<Backend> = self.numbered.iter().filter(|backend| !set.contains(backend)).copied().collect();
        self.change(wanted, &gone)
    }

    fn describe(&self, touched: &BTreeMap<usize, Option<Backend>>, before: usize) -> BackendChange {
        let (mut clear, mut put) = (Vec::new(), Vec::new());
        for (number, old) in touched {
            let new = self.numbered.get(*number).copied();
            if *old == new {
                continue;
            }
            let wire = u32::try_from(*number).unwrap_or(u32::MAX);
            clear.extend(old.map(|_| wire));
            put.extend(new.map(|new| (wire, new)));
        }
        let count = u32::try_from(self.numbered.len()).unwrap_or(u32::MAX);
        BackendChange { clear, put, count, same_count: before == self.numbered.len() }
    }
}

/// What connections to a service look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Frontend {
    /// Those to an address, of any protocol and port.
    Address(IpAddr),
    /// Those to an address and port.
    Port(IpAddr, Transport, u16),
    /// Those to a port of any address of this namespace.
    Published(Transport, u16),
}

/// A table of services in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// The table; of one family, that of the addresses.
    pub table: Table,
}

/// Map from address, protocol and port to a service's chain.
const SERVICES: &str = "services";
/// Map from address to a service's chain.
const VIPS: &str = "vips";
/// Map from protocol and port to a service's chain.
const PUBLISHED: &str = "published";
/// `dstnat` and `srcnat`.
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

impl Balancer {
    /// A table for IPv4 or IPv6.
    pub fn new(name: impl Into<String>, ipv6: bool) -> Self {
        Self { table: Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, name) }
    }

    fn ipv6(&self) -> bool {
        self.table.family == Family::Ip6
    }

    fn address(&self) -> (Selector, Field) {
        let selector = if self.ipv6() { Selector::Ip6Destination } else { Selector::Ip4Destination };
        (selector, selector.field())
    }

    /// Makes the table afresh, for connections that begin in the namespace itself: a container's.
    pub fn create_for_sandbox(&self, transaction: &mut Transaction) {
        let table = &self.table;
        let (destination, field) = self.address();
        transaction.reset_table(table);
        transaction.add_set(table, &Set::verdicts(SERVICES, &[field, Field::Protocol, Field::Port]));
        transaction.add_set(table, &Set::verdicts(VIPS, &[field]));
        let output = BaseChain::new(ChainType::Nat, Hook::Output, DESTINATION_NAT);
        transaction.add_base_chain(table, "output", output);
        let rule = || Rule::new(table.family);
        let key = [destination, Selector::Protocol, Selector::DestinationPort];
        transaction.add_rule(table, "output", &rule().verdict_of(&key, SERVICES));
        transaction.add_rule(table, "output", &rule().verdict_of(&[destination], VIPS));
    }

    /// Makes the table afresh, for connections to ports of this namespace's own addresses: a host's ingress. Backends
    /// answer to the address of `masquerade_to`, the device that leads to them; `None`: to the client itself, if they can.
    pub fn create_for_ingress(&self, transaction: &mut Transaction, masquerade_to: Option<&str>) {
        let table = &self.table;
        transaction.reset_table(table);
        transaction.add_set(table, &Set::verdicts(PUBLISHED, &[Field::Protocol, Field::Port]));
        let rule = || Rule::new(table.family);
        let published =
            rule().local_destination().verdict_of(&[Selector::Protocol, Selector::DestinationPort], PUBLISHED);
        for (chain, hook) in [("prerouting", Hook::Prerouting), ("output", Hook::Output)] {
            transaction.add_base_chain(table, chain, BaseChain::new(ChainType::Nat, hook, DESTINATION_NAT));
            transaction.add_rule(table, chain, &published);
        }
        if let Some(device) = masquerade_to {
            let postrouting = BaseChain::new(ChainType::Nat, Hook::Postrouting, SOURCE_NAT);
            transaction.add_base_chain(table, "postrouting", postrouting);
            let back = rule().output_device(device).was_redirected().masquerade();
            transaction.add_rule(table, "postrouting", &back);
        }
    }

    /// Adds a service with its backends. All of them have a port, if `ports`, or none has.
    pub fn add_service(
        &self,
        transaction: &mut Transaction,
        service: &str,
        frontends: &[Frontend],
        backends: &Backends,
        ports: bool,
    ) {
        let (_, address) = self.address();
        let data: &[Field] = if ports { &[address, Field::Port] } else { &[address] };
        transaction.add_set(&self.table, &Set::map(map_of(service), &[Field::Number], data));
        transaction.add_chain(&self.table, &chain_of(service));
        let all: Vec<(u32, Backend)> = (0..).zip(backends.list().iter().copied()).collect();
        let elements: Vec<Element> = all.iter().map(|(number, backend)| element(*number, backend)).collect();
        transaction.add_elements(&self.table, &map_of(service), &elements);
        let count = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        transaction.add_rule(&self.table, &chain_of(service), &self.rule(service, count, ports));
        self.frontends(transaction, service, frontends, Transaction::add_elements);
    }

    /// Changes the backends of a service: a few messages, whatever their number.
    pub fn change_backends(&self, transaction: &mut Transaction, service: &str, change: &BackendChange, ports: bool) {
        let map = map_of(service);
        let clear: Vec<Element> =
            change.clear.iter().map(|number| Element::new(Value::new().number(*number))).collect();
        let put: Vec<Element> = change.put.iter().map(|(number, backend)| element(*number, backend)).collect();
        transaction.delete_elements(&self.table, &map, &clear);
        transaction.add_elements(&self.table, &map, &put);
        if !change.same_count {
            transaction.flush_chain(&self.table, &chain_of(service));
            transaction.add_rule(&self.table, &chain_of(service), &self.rule(service, change.count, ports));
        }
    }

    /// Removes a service.
    pub fn remove_service(&self, transaction: &mut Transaction, service: &str, frontends: &[Frontend]) {
        self.frontends(transaction, service, frontends, Transaction::delete_elements);
        transaction.delete_chain(&self.table, &chain_of(service));
        transaction.delete_set(&self.table, &map_of(service));
    }

    fn rule(&self, service: &str, count: u32, ports: bool) -> Rule {
        let rule = Rule::new(self.table.family);
        match count {
            0 => rule.reject(),
            _ => rule.random_destination(count, &map_of(service), self.ipv6(), ports),
        }
    }

    fn frontends(
        &self,
        transaction: &mut Transaction,
        service: &str,
        frontends: &[Frontend],
        act: fn(&mut Transaction, &Table, &str, &[Element]),
    ) {
        for frontend in frontends {
            let (map, key) = match *frontend {
                Frontend::Address(address) => (VIPS, Value::new().ip(address)),
                Frontend::Port(address, protocol, port) => {
                    (SERVICES, Value::new().ip(address).protocol(protocol).port(port))
                }
                Frontend::Published(protocol, port) => (PUBLISHED, Value::new().protocol(protocol).port(port)),
            };
            act(transaction, &self.table, map, &[Element::verdict(key, Verdict::Goto(chain_of(service)))]);
        }
    }
}

fn element(number: u32, backend: &Backend) -> Element {
    let value = Value::new().ip(backend.address);
    Element::value(Value::new().number(number), backend.port.map_or(value, |port| value.port(port)))
}

fn chain_of(service: &str) -> String {
    format!("to_{service}")
}

fn map_of(service: &str) -> String {
    format!("backends_{service}")
}

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
