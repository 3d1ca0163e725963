//! Load balancing: connections to a service go to a random backend, by connection tracking and a numbered map.
//!
//! All backends of all services are in one map, under numbers: those of a service in a row. The service has a chain
//! with one rule, which draws one of its numbers and goes on to a chain for all, which redirects:
//!
//! ```text
//! chain to_web   { meta priority set numgen random mod 3 offset 65536 goto redirect }
//! chain redirect { dnat to meta priority map @backends }
//! ```
//!
//! So a change is a few messages, and costs the same whatever the number of backends: the kernel would look at all of a
//! map's elements to make a rule with it, and compares names one by one to find a map among many. [`Backends`] decides
//! which number each one has, so that a change touches few; [`Balancer`] writes that into a transaction.
//!
//! Open connections stay where they are: only the first packet of one is balanced. In a sandbox, a service without
//! backends refuses connections at once (a sender of datagrams hears EPERM); at the ingress its port is then the
//! host's own again.
//!
//! The decision is pure and the transaction names no namespace: worked out once, it is committed in every namespace
//! of a network.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;

use super::expression::Verdict;
use super::rule::{ConnectionState, Rule, Selector};
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
    /// How many backends there were.
    pub before: u32,
    /// How many backends there are then. As long as that is the same, the rule stays as it is.
    pub count: u32,
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

    /// As they were numbered before ([`Backends::list`]), by a process that this one takes over from. One that is there
    /// twice counts once.
    pub fn numbered(list: &[Backend]) -> Self {
        let mut this = Self::new();
        this.change(list, &[]);
        this
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
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        BackendChange { clear, put, before: count(before), count: count(self.numbered.len()) }
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

/// A service, as a table knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Where its backends' numbers begin. No two services of a table share one.
    pub number: u16,
    /// What its chain is called after: letters, digits, `_`, `-`, at most 240.
    pub name: String,
    /// What connections to it look like. No two services of a table share one.
    pub frontends: Vec<Frontend>,
    /// Whether backends have a port of their own: all of them, or none.
    pub ports: bool,
}

/// Most backends of a service.
pub const MAX_BACKENDS: u32 = 1 << 16;

impl Service {
    fn chain(&self) -> String {
        format!("to_{}", self.name)
    }

    fn first(&self) -> u32 {
        u32::from(self.number) * MAX_BACKENDS
    }

    /// The key of a backend's number.
    fn key(&self, number: u32) -> Value {
        Value::new().number(self.first() | number)
    }

    /// The map of its backends and the chain that redirects to them.
    fn map(&self) -> (&'static str, &'static str) {
        if self.ports { ("backends_with_ports", "redirect_with_ports") } else { ("backends", "redirect") }
    }
}

/// A table of services in a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Balancer {
    /// The table; of one family, that of the addresses.
    pub table: Table,
    /// Whether it is for connections that begin here.
    sandbox: bool,
}

/// Map from address, protocol and port to a service's chain.
const SERVICES: &str = "services";
/// Map from address to a service's chain.
const VIPS: &str = "vips";
/// Those of them that have no backends.
const DOWN_SERVICES: &str = "down_services";
const DOWN_VIPS: &str = "down_vips";
/// Map from protocol and port to a service's chain.
const PUBLISHED: &str = "published";
/// `dstnat` and `srcnat`.
const DESTINATION_NAT: i32 = -100;
const SOURCE_NAT: i32 = 100;

impl Balancer {
    /// A table for connections that begin in the namespace itself, a container's; for IPv4 or IPv6.
    pub fn sandbox(name: impl Into<String>, ipv6: bool) -> Self {
        Self { table: Table::new(if ipv6 { Family::Ip6 } else { Family::Ip }, name), sandbox: true }
    }

    /// A table for connections to ports of the namespace's own addresses, a host's ingress; for IPv4 or IPv6.
    pub fn ingress(name: impl Into<String>, ipv6: bool) -> Self {
        Self { sandbox: false, ..Self::sandbox(name, ipv6) }
    }

    fn ipv6(&self) -> bool {
        self.table.family == Family::Ip6
    }

    fn address(&self) -> (Selector, Field) {
        let selector = if self.ipv6() { Selector::Ip6Destination } else { Selector::Ip4Destination };
        (selector, selector.field())
    }

    /// Makes the table afresh, without services.
    ///
    /// Of an ingress, backends answer to the address of `masquerade_to`, the device that leads to them; `None`: to the
    /// client itself, if they can.
    pub fn create(&self, transaction: &mut Transaction, masquerade_to: Option<&str>) {
        let (table, (_, address)) = (&self.table, self.address());
        transaction.reset_table(table);
        for ports in [false, true] {
            let (map, chain) = Service { number: 0, name: String::new(), frontends: Vec::new(), ports }.map();
            let data: &[Field] = if ports { &[address, Field::Port] } else { &[address] };
            transaction.add_set(table, &Set::map(map, &[Field::Number], data));
            transaction.add_chain(table, chain);
            let redirect = Rule::new(table.family).drawn_destination(map, self.ipv6(), ports);
            transaction.add_rule(table, chain, &redirect);
        }
        if self.sandbox { self.create_sandbox(transaction) } else { self.create_ingress(transaction, masquerade_to) }
    }

    fn create_sandbox(&self, transaction: &mut Transaction) {
        let table = &self.table;
        let (destination, field) = self.address();
        let key = [destination, Selector::Protocol, Selector::DestinationPort];
        let fields = key.map(Selector::field);
        transaction.add_set(table, &Set::verdicts(SERVICES, &fields));
        transaction.add_set(table, &Set::verdicts(VIPS, &[field]));
        transaction.add_set(table, &Set::new(DOWN_SERVICES, &fields));
        transaction.add_set(table, &Set::new(DOWN_VIPS, &[field]));
        let output = BaseChain::new(ChainType::Nat, Hook::Output, DESTINATION_NAT);
        transaction.add_base_chain(table, "output", output);
        let rule = || Rule::new(table.family);
        transaction.add_rule(table, "output", &rule().verdict_of(&key, SERVICES));
        transaction.add_rule(table, "output", &rule().verdict_of(&[destination], VIPS));
        // Behind the other: what is still for a VIP found no backend.
        transaction.add_base_chain(table, "refuse", BaseChain::new(ChainType::Filter, Hook::Output, 0));
        // All other packets but a connection's first one: those need not be looked for.
        transaction.add_rule(table, "refuse", &rule().state(ConnectionState::ESTABLISHED).verdict(Verdict::Accept));
        for (key, set) in [(key.as_slice(), DOWN_SERVICES), (&[destination], DOWN_VIPS)] {
            transaction.add_rule(table, "refuse", &rule().in_set(key, set).reset());
            transaction.add_rule(table, "refuse", &rule().in_set(key, set).reject());
        }
    }

    fn create_ingress(&self, transaction: &mut Transaction, masquerade_to: Option<&str>) {
        let table = &self.table;
        let key = [Selector::Protocol, Selector::DestinationPort];
        transaction.add_set(table, &Set::verdicts(PUBLISHED, &key.map(Selector::field)));
        let rule = || Rule::new(table.family);
        let published = rule().local_destination().verdict_of(&key, PUBLISHED);
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

    /// Adds a service with its backends.
    pub fn add_service(&self, transaction: &mut Transaction, service: &Service, backends: &Backends) {
        let numbered = (0..).zip(backends.list().iter().copied());
        let elements: Vec<Element> = numbered.map(|(number, each)| element(service, number, each)).collect();
        transaction.add_elements(&self.table, service.map().0, &elements);
        transaction.add_chain(&self.table, &service.chain());
        self.draw(transaction, service, u32::try_from(elements.len()).unwrap_or(u32::MAX));
        self.frontends(transaction, service, Transaction::add_elements);
        if elements.is_empty() {
            self.refuse(transaction, service, Transaction::add_elements);
        }
    }

    /// Changes the backends of a service: a few messages, whatever their number.
    pub fn change_backends(&self, transaction: &mut Transaction, service: &Service, change: &BackendChange) {
        let clear: Vec<Element> = change.clear.iter().map(|number| Element::new(service.key(*number))).collect();
        let put: Vec<Element> = change.put.iter().map(|(number, each)| element(service, *number, *each)).collect();
        transaction.delete_elements(&self.table, service.map().0, &clear);
        transaction.add_elements(&self.table, service.map().0, &put);
        if change.before != change.count {
            transaction.flush_chain(&self.table, &service.chain());
            self.draw(transaction, service, change.count);
        }
        match (change.before, change.count) {
            (0, 1..) => self.refuse(transaction, service, Transaction::delete_elements),
            (1.., 0) => self.refuse(transaction, service, Transaction::add_elements),
            _ => {}
        }
    }

    /// Removes a service that has `backends`.
    pub fn remove_service(&self, transaction: &mut Transaction, service: &Service, backends: &Backends) {
        self.frontends(transaction, service, Transaction::delete_elements);
        if backends.list().is_empty() {
            self.refuse(transaction, service, Transaction::delete_elements);
        }
        transaction.delete_chain(&self.table, &service.chain());
        let elements: Vec<Element> =
            (0..).zip(backends.list()).map(|(number, _)| Element::new(service.key(number))).collect();
        transaction.delete_elements(&self.table, service.map().0, &elements);
    }

    /// The service's rule: none without backends.
    fn draw(&self, transaction: &mut Transaction, service: &Service, count: u32) {
        if count > MAX_BACKENDS {
            let problem = format!("it has {count} backends, and can have {MAX_BACKENDS}");
            return transaction.reject(format!("balance service {}", service.name), problem);
        }
        if count > 0 {
            let redirect = Verdict::Goto(service.map().1.to_owned());
            let rule = Rule::new(self.table.family).draw(count, service.first()).verdict(redirect);
            transaction.add_rule(&self.table, &service.chain(), &rule);
        }
    }

    /// Leads connections to the service's chain, or no longer.
    fn frontends(&self, transaction: &mut Transaction, service: &Service, act: Act) {
        for frontend in &service.frontends {
            let map = match frontend {
                Frontend::Address(_) => VIPS,
                Frontend::Port(..) => SERVICES,
                Frontend::Published(..) => PUBLISHED,
            };
            let element = Element::verdict(key(*frontend), Verdict::Goto(service.chain()));
            act(transaction, &self.table, map, &[element]);
        }
    }

    /// Refuses connections to the service, or no longer.
    fn refuse(&self, transaction: &mut Transaction, service: &Service, act: Act) {
        for frontend in &service.frontends {
            let set = match frontend {
                Frontend::Address(_) => DOWN_VIPS,
                Frontend::Port(..) => DOWN_SERVICES,
                Frontend::Published(..) => continue,
            };
            act(transaction, &self.table, set, &[Element::new(key(*frontend))]);
        }
    }
}

/// Adds elements or deletes them.
type Act = fn(&mut Transaction, &Table, &str, &[Element]);

fn key(frontend: Frontend) -> Value {
    match frontend {
        Frontend::Address(address) => Value::new().ip(address),
        Frontend::Port(address, protocol, port) => Value::new().ip(address).protocol(protocol).port(port),
        Frontend::Published(protocol, port) => Value::new().protocol(protocol).port(port),
    }
}

fn element(service: &Service, number: u32, backend: Backend) -> Element {
    let value = Value::new().ip(backend.address);
    Element::value(service.key(number), backend.port.map_or(value, |port| value.port(port)))
}

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
