//! The names of one network, from its rows of services and endpoints.
//!
//! Pure. netd puts and removes rows as the managers' table of the network changes; `answer` looks names up. Every change
//! costs time that does not grow with the network (amortised: hash tables double now and then). Rows may come in any
//! order: an endpoint before its service, a new row with an address before the row that had it is removed.
//!
//! Never fails and never leaves a trace of a removed row: a zone is a function of the rows it holds. (One exception: of two
//! rows with one address, which managers do not make but for a moment, the later one has it in reverse lookups.)

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use hickory_proto::rr::RecordType;

use crate::name::comparable;
use crate::pool::Pool;

/// The prefix of a service's name that asks for all its serving tasks.
const TASKS: &str = "tasks.";

/// Names a service's row; the service's id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId(pub [u8; 16]);

/// Names an endpoint's row; the id of its task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EndpointId(pub [u8; 16]);

/// A service on the network.
#[derive(Clone, Debug, Default)]
pub struct Service {
    /// Its name, then its aliases on this network. A name that no question can ask for (an empty label, more than 63
    /// octets in one, spaces) is ignored.
    pub names: Vec<String>,
    /// What its names resolve to. Empty with dnsrr: then they resolve to its serving tasks.
    pub virtual_addresses: Vec<IpAddr>,
}

/// A task on the network.
#[derive(Clone, Debug, Default)]
pub struct Endpoint {
    /// The service it is counted to.
    pub service: Option<ServiceId>,
    /// One of each family at most; of more, the last counts.
    pub addresses: Vec<IpAddr>,
    /// Names of this task alone. The first is the answer to a reverse lookup.
    pub names: Vec<String>,
    /// Whether names lead to it.
    pub serving: Serving,
}

/// Whether names lead to an endpoint.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Serving {
    /// It is known by reverse lookup only.
    #[default]
    No,
    /// Where no other that has the name, or is of the service, serves.
    LastResort,
    Yes,
}

#[derive(Debug)]
struct ServiceRow {
    names: Vec<Arc<str>>,
    virtual_addresses: Vec<IpAddr>,
}

#[derive(Debug)]
struct EndpointRow {
    service: Option<ServiceId>,
    v4: Option<Ipv4Addr>,
    v6: Option<Ipv6Addr>,
    names: Vec<Arc<str>>,
    serving: Serving,
}

impl EndpointRow {
    fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

/// Who has a name.
#[derive(Debug, Default)]
struct Holders {
    services: Vec<ServiceId>,
    /// Endpoints with this name as one of their own, those that do not serve included.
    endpoints: usize,
    /// Those of them that serve.
    serving: Pools,
}

/// Those that one name leads to.
#[derive(Debug, Default)]
struct Pools {
    serving: Pool,
    last_resort: Pool,
}

impl Pools {
    fn insert(&mut self, id: EndpointId, row: &EndpointRow) {
        let pool = match row.serving {
            Serving::No => return,
            Serving::LastResort => &mut self.last_resort,
            Serving::Yes => &mut self.serving,
        };
        pool.insert(id, row.v4, row.v6);
    }

    fn remove(&mut self, id: EndpointId) {
        self.serving.remove(id);
        self.last_resort.remove(id);
    }

    fn is_empty(&self) -> bool {
        self.serving.is_empty() && self.last_resort.is_empty()
    }

    fn collect(&self, family: Family, found: &mut Vec<IpAddr>) {
        collect(if self.serving.is_empty() { &self.last_resort } else { &self.serving }, family, found);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    Service(ServiceId),
    Endpoint(EndpointId),
}

/// Which addresses a question wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    V4,
    V6,
    Both,
    /// None: a question of another type, for which only the name's existence matters.
    Neither,
}

impl Family {
    pub(crate) fn of(kind: RecordType) -> Self {
        match kind {
            RecordType::A => Self::V4,
            RecordType::AAAA => Self::V6,
            RecordType::ANY => Self::Both,
            _ => Self::Neither,
        }
    }

    pub(crate) fn wants(self, address: IpAddr) -> bool {
        match self {
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
            Self::Both => true,
            Self::Neither => false,
        }
    }
}

/// The names of one network.
#[derive(Debug, Default)]
pub struct Zone {
    services: HashMap<ServiceId, ServiceRow>,
    endpoints: HashMap<EndpointId, EndpointRow>,
    names: HashMap<Arc<str>, Holders>,
    /// The serving endpoints of each service that has any.
    members: HashMap<ServiceId, Pools>,
    reverse: HashMap<IpAddr, Owner>,
}

impl Zone {
    /// Adds a service, or replaces its row.
    pub fn put_service(&mut self, id: ServiceId, service: &Service) {
        self.remove_service(id);
        let mut names: Vec<Arc<str>> = Vec::with_capacity(service.names.len());
        for name in service.names.iter().filter_map(|name| comparable(name)) {
            let (name, holders) = self.holders(name);
            if !holders.services.contains(&id) {
                holders.services.push(id);
                names.push(name);
            }
        }
        for &address in &service.virtual_addresses {
            self.reverse.insert(address, Owner::Service(id));
        }
        self.services.insert(id, ServiceRow { names, virtual_addresses: service.virtual_addresses.clone() });
    }

    /// Removes a service. Its endpoints stay until their own rows go. Nothing happens if it is not there.
    pub fn remove_service(&mut self, id: ServiceId) {
        let Some(row) = self.services.remove(&id) else { return };
        for name in &row.names {
            self.change_holders(name, |holders| holders.services.retain(|&held| held != id));
        }
        for &address in &row.virtual_addresses {
            self.forget(address, Owner::Service(id));
        }
    }

    /// Adds an endpoint, or replaces its row.
    pub fn put_endpoint(&mut self, id: EndpointId, endpoint: &Endpoint) {
        self.remove_endpoint(id);
        let mut row = EndpointRow {
            service: endpoint.service,
            v4: None,
            v6: None,
            names: Vec::with_capacity(endpoint.names.len()),
            serving: endpoint.serving,
        };
        for &address in &endpoint.addresses {
            match address {
                IpAddr::V4(address) => row.v4 = Some(address),
                IpAddr::V6(address) => row.v6 = Some(address),
            }
        }
        for name in endpoint.names.iter().filter_map(|name| comparable(name)) {
            if row.names.iter().any(|had| **had == *name) {
                continue;
            }
            let (name, holders) = self.holders(name);
            holders.endpoints += 1;
            holders.serving.insert(id, &row);
            row.names.push(name);
        }
        if let Some(service) = row.service.filter(|_| row.serving != Serving::No) {
            self.members.entry(service).or_default().insert(id, &row);
        }
        for address in row.addresses() {
            self.reverse.insert(address, Owner::Endpoint(id));
        }
        self.endpoints.insert(id, row);
    }

    /// Removes an endpoint. Nothing happens if it is not there.
    pub fn remove_endpoint(&mut self, id: EndpointId) {
        let Some(row) = self.endpoints.remove(&id) else { return };
        for name in &row.names {
            self.change_holders(name, |holders| {
                holders.endpoints -= 1;
                holders.serving.remove(id);
            });
        }
        if let Some(Entry::Occupied(mut entry)) = row.service.map(|service| self.members.entry(service)) {
            entry.get_mut().remove(id);
            if entry.get().is_empty() {
                entry.remove();
            }
        }
        for address in row.addresses() {
            self.forget(address, Owner::Endpoint(id));
        }
    }

    /// How many endpoints there are.
    pub fn endpoint_count(&self) -> usize {
        self.endpoints.len()
    }

    /// How many services there are.
    pub fn service_count(&self) -> usize {
        self.services.len()
    }

    /// The holders of a comparable name, made when there are none, and the one shared copy of the name.
    fn holders(&mut self, name: String) -> (Arc<str>, &mut Holders) {
        match self.names.entry(Arc::from(name)) {
            Entry::Occupied(entry) => (Arc::clone(entry.key()), entry.into_mut()),
            Entry::Vacant(entry) => (Arc::clone(entry.key()), entry.insert(Holders::default())),
        }
    }

    fn change_holders(&mut self, name: &Arc<str>, change: impl FnOnce(&mut Holders)) {
        let Entry::Occupied(mut entry) = self.names.entry(Arc::clone(name)) else { return };
        change(entry.get_mut());
        if entry.get().services.is_empty() && entry.get().endpoints == 0 {
            entry.remove();
        }
    }

    /// Forgets whose address it is, unless another row has taken it over.
    fn forget(&mut self, address: IpAddr, owner: Owner) {
        if self.reverse.get(&address) == Some(&owner) {
            self.reverse.remove(&address);
        }
    }

    /// The addresses behind a comparable name, in no order. `None`: no such name. Empty: the name is there, and nothing of
    /// this family serves.
    ///
    /// A service's name comes before an endpoint's, a whole name before its reading as `tasks.<service>`.
    pub(crate) fn addresses(&self, name: &str, family: Family) -> Option<Vec<IpAddr>> {
        let mut found = Vec::new();
        if let Some(holders) = self.names.get(name) {
            if holders.services.is_empty() {
                holders.serving.collect(family, &mut found);
            }
            for id in &holders.services {
                match self.services.get(id) {
                    Some(row) if !row.virtual_addresses.is_empty() => {
                        found.extend(row.virtual_addresses.iter().filter(|&&address| family.wants(address)));
                    }
                    _ => self.collect_members(*id, family, &mut found),
                }
            }
            return Some(found);
        }
        let holders = self.names.get(name.strip_prefix(TASKS)?)?;
        if holders.services.is_empty() {
            return None;
        }
        for id in &holders.services {
            self.collect_members(*id, family, &mut found);
        }
        Some(found)
    }

    fn collect_members(&self, id: ServiceId, family: Family, found: &mut Vec<IpAddr>) {
        if let Some(pools) = self.members.get(&id) {
            pools.collect(family, found);
        }
    }

    /// Whose address it is: the first name of a service or of an endpoint. `Some(None)`: one that has no name.
    pub(crate) fn name_of(&self, address: IpAddr) -> Option<Option<&str>> {
        let names = match self.reverse.get(&address)? {
            Owner::Service(id) => &self.services.get(id)?.names,
            Owner::Endpoint(id) => &self.endpoints.get(id)?.names,
        };
        Some(names.first().map(|name| &**name))
    }
}

fn collect(pool: &Pool, family: Family, found: &mut Vec<IpAddr>) {
    match family {
        Family::V4 => found.extend(pool.v4()),
        Family::V6 => found.extend(pool.v6()),
        Family::Both => found.extend(pool.v4().chain(pool.v6())),
        Family::Neither => {}
    }
}

#[cfg(test)]
#[path = "zone_test.rs"]
mod zone_test;
