//! Which connections go to which backends: the virtual addresses of a network's services in each sandbox, or the published
//! ports of the routing mesh on each host. Follows the network's table; a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use skep_netlink::nft::{Backend, Backends, Balancer, Frontend, Service, Transaction};
use skep_proto::id::{ServiceId, TaskId};

use crate::plan::ingress;
use crate::table::{self, EndpointState, Table, TableChange};

/// What is balanced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Virtual addresses, within a sandbox.
    Addresses,
    /// Published ports, at the host's ingress.
    Ports,
}

/// The balancing of one network for one address family. The same transaction is for every namespace that has it.
#[derive(Clone, Debug)]
pub struct Balance {
    kind: Kind,
    ipv6: bool,
    balancer: Balancer,
    /// Tasks of each service that take connections, with their address of this family.
    serving: HashMap<ServiceId, Tasks>,
    /// By service, what it has in the kernel.
    held: BTreeMap<ServiceId, Vec<Held>>,
    /// Numbers that what is held goes by in the kernel.
    numbers: BTreeSet<u16>,
}

/// One thing that a service is to have in the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Wanted {
    name: String,
    frontends: Vec<Frontend>,
    /// Where the containers listen; `None`: at the port that is connected to.
    target: Option<u16>,
}

#[derive(Clone, Debug, Default)]
struct Tasks {
    serving: BTreeMap<TaskId, IpAddr>,
    /// They take connections where the others are none.
    last_resort: BTreeMap<TaskId, IpAddr>,
}

#[derive(Clone, Debug)]
struct Held {
    service: Service,
    /// Where the containers listen; `None`: at the port that is connected to.
    target: Option<u16>,
    backends: Backends,
}

impl Balance {
    /// Without services. `table`: the name of the nftables table.
    pub fn new(kind: Kind, table: &str, ipv6: bool) -> Self {
        let balancer = match kind {
            Kind::Addresses => Balancer::sandbox(table, ipv6),
            Kind::Ports => Balancer::ingress(table, ipv6),
        };
        Self { kind, ipv6, balancer, serving: HashMap::new(), held: BTreeMap::new(), numbers: BTreeSet::new() }
    }

    /// One of the same table, without services.
    pub fn afresh(&self) -> Self {
        let (serving, held, numbers) = (HashMap::new(), BTreeMap::new(), BTreeSet::new());
        Self { kind: self.kind, ipv6: self.ipv6, balancer: self.balancer.clone(), serving, held, numbers }
    }

    /// Of which family it is.
    pub fn ipv6(&self) -> bool {
        self.ipv6
    }

    /// Follows a change that led to `table`. Returns what is to be changed in each namespace that has the table.
    pub fn change(&mut self, table: &Table, change: &TableChange) -> Transaction {
        let mut touched: BTreeSet<ServiceId> = change.services.keys().copied().collect();
        for (task, (old, new)) in &change.endpoints {
            for row in [old, new].into_iter().flatten() {
                touched.insert(row.service);
            }
            if let Some(row) = old {
                self.forget(row.service, *task);
            }
            if let Some(row) = new {
                self.note(*task, row);
            }
        }
        let mut transaction = Transaction::new();
        // What goes first frees addresses and ports for what comes.
        let mut come = Vec::new();
        for id in touched {
            let wanted = table.services.get(&id).map(|row| self.wanted(id, row)).unwrap_or_default();
            let mut held = self.held.remove(&id).unwrap_or_default();
            held.retain(|held| {
                let stays = wanted.iter().any(|wanted| held.is(wanted));
                if !stays {
                    self.balancer.remove_service(&mut transaction, &held.service, &held.backends);
                    self.numbers.remove(&held.service.number);
                }
                stays
            });
            come.push((id, wanted, held));
        }
        for (id, wanted, mut held) in come {
            for wanted in wanted {
                let backends = self.backends(id, wanted.target);
                if let Some(held) = held.iter_mut().find(|held| held.is(&wanted)) {
                    let change = held.backends.become_these(&backends);
                    if !change.is_empty() {
                        self.balancer.change_backends(&mut transaction, &held.service, &change);
                    }
                } else if let Some(number) = self.free_number() {
                    let target = wanted.target;
                    let service = wanted.numbered(number);
                    let backends = Backends::numbered(&backends);
                    self.balancer.add_service(&mut transaction, &service, &backends);
                    held.push(Held { service, target, backends });
                } else {
                    tracing::error!(service = %id, "a network cannot balance more than 65,536 addresses and ports");
                }
            }
            if !held.is_empty() {
                self.held.insert(id, held);
            }
        }
        transaction
    }

    /// Makes all of it afresh in a namespace, in place of what may be there. Replies to connections through the device
    /// `masquerade_to` come back to its address (ingress only).
    pub fn whole(&self, masquerade_to: Option<&str>) -> Transaction {
        let mut transaction = Transaction::new();
        self.balancer.create(&mut transaction, masquerade_to);
        for held in self.held.values().flatten() {
            self.balancer.add_service(&mut transaction, &held.service, &held.backends);
        }
        transaction
    }

    /// Where connections go, by what they look like: for tests and for people.
    pub fn backends_of(&self, frontend: Frontend) -> Option<&[Backend]> {
        let held = self.held.values().flatten().find(|held| held.service.frontends.contains(&frontend))?;
        Some(held.backends.list())
    }

    /// Everything that has a backend: what the host has to hand on to the ingress.
    pub fn served(&self) -> impl Iterator<Item = Frontend> + '_ {
        let served = self.held.values().flatten().filter(|held| !held.backends.list().is_empty());
        served.flat_map(|held| held.service.frontends.iter().copied())
    }

    /// A number that nothing has; `None`: all are taken.
    fn free_number(&mut self) -> Option<u16> {
        let next = self.numbers.last().map_or(Some(0), |last| last.checked_add(1));
        let number = next.or_else(|| (0..=u16::MAX).find(|number| !self.numbers.contains(number)))?;
        self.numbers.insert(number);
        Some(number)
    }

    fn note(&mut self, task: TaskId, row: &table::Endpoint) {
        let address = row.addresses.iter().copied().find(|address| address.is_ipv6() == self.ipv6);
        let Some(address) = address.filter(|_| row.state != EndpointState::Quiet) else { return };
        let tasks = self.serving.entry(row.service).or_default();
        let tasks = if row.state == EndpointState::Serving { &mut tasks.serving } else { &mut tasks.last_resort };
        tasks.insert(task, address);
    }

    fn forget(&mut self, service: ServiceId, task: TaskId) {
        if let Some(tasks) = self.serving.get_mut(&service) {
            tasks.serving.remove(&task);
            tasks.last_resort.remove(&task);
            if tasks.serving.is_empty() && tasks.last_resort.is_empty() {
                self.serving.remove(&service);
            }
        }
    }

    fn backends(&self, service: ServiceId, port: Option<u16>) -> Vec<Backend> {
        let Some(tasks) = self.serving.get(&service) else { return Vec::new() };
        let tasks = if tasks.serving.is_empty() { &tasks.last_resort } else { &tasks.serving };
        tasks.values().map(|address| Backend { address: *address, port }).collect()
    }

    /// What a service is to have.
    fn wanted(&self, id: ServiceId, row: &table::Service) -> Vec<Wanted> {
        match self.kind {
            Kind::Addresses => {
                let own = row.virtual_addresses.iter().filter(|address| address.is_ipv6() == self.ipv6);
                let frontends: Vec<Frontend> = own.map(|address| Frontend::Address(*address)).collect();
                if frontends.is_empty() {
                    return Vec::new();
                }
                vec![Wanted { name: id.to_string(), frontends, target: None }]
            }
            Kind::Ports => {
                let wanted = |port: ingress::Port| Wanted {
                    name: port.name(),
                    frontends: vec![port.frontend()],
                    target: Some(port.target),
                };
                ingress::ports(row).into_iter().map(wanted).collect()
            }
        }
    }
}

impl Wanted {
    fn numbered(self, number: u16) -> Service {
        Service { number, name: self.name, frontends: self.frontends, ports: self.target.is_some() }
    }
}

impl Held {
    /// Whether it is what is wanted, its backends aside.
    fn is(&self, wanted: &Wanted) -> bool {
        self.service.name == wanted.name && self.service.frontends == wanted.frontends && self.target == wanted.target
    }
}

#[cfg(test)]
#[path = "balance_test.rs"]
mod tests;
