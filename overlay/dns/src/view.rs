//! What one sandbox sees: its networks in order, its own names, search domains, options and name servers.
//!
//! Made by netd for each sandbox. The networks are shared between the sandboxes of a host, so that a change of a network
//! is done once. A view holds no copy of any name that changes.

use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};

use crate::name::comparable;
use crate::upstream::Upstream;
use crate::zone::{Family, Zone};

/// A network on this host: its names, shared by the sandboxes on it.
#[derive(Debug)]
pub struct Network {
    name: Option<String>,
    subnets: Vec<(IpAddr, u8)>,
    zone: RwLock<Zone>,
}

impl Network {
    /// A network without rows. `name`: `x.<name>` asks for `x` on this network alone. `subnets`: addresses with the length
    /// of their prefix in bits; reverse lookups in them are answered here, also for addresses that nobody has.
    pub fn new(name: &str, subnets: &[(IpAddr, u8)]) -> Arc<Self> {
        Arc::new(Self { name: comparable(name), subnets: subnets.to_vec(), zone: RwLock::default() })
    }

    /// Changes rows. Questions see all of the change or nothing of it, and wait meanwhile: keep it short.
    pub fn change<T>(&self, change: impl FnOnce(&mut Zone) -> T) -> T {
        change(&mut self.zone.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Puts a whole table in place of the rows. It was built outside, so no question waits for it.
    pub fn replace(&self, zone: Zone) {
        // The old rows are freed after the lock.
        let _old = self.change(|held| std::mem::replace(held, zone));
    }

    pub(crate) fn read<T>(&self, read: impl FnOnce(&Zone) -> T) -> T {
        read(&self.zone.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether the address is in one of the subnets.
    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        self.subnets.iter().any(|&(subnet, bits)| match (subnet, address) {
            (IpAddr::V4(subnet), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32_u32.saturating_sub(bits.into())).unwrap_or(0);
                (subnet.to_bits() ^ address.to_bits()) & mask == 0
            }
            (IpAddr::V6(subnet), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(bits.into())).unwrap_or(0);
                (subnet.to_bits() ^ address.to_bits()) & mask == 0
            }
            _ => false,
        })
    }
}

/// What one sandbox sees.
#[derive(Clone, Debug, Default)]
pub struct View {
    networks: Vec<Arc<Network>>,
    names: Vec<String>,
    addresses: Vec<IpAddr>,
    search: Vec<String>,
    ndots: u8,
    upstream: Upstream,
}

impl View {
    /// A sandbox on these networks. A name is looked for in their order, and the first that has it answers.
    pub fn new(networks: Vec<Arc<Network>>) -> Self {
        Self { networks, ..Self::default() }
    }

    /// The sandbox's own names (its hostname, `service.slot.taskid`). They lead to `addresses`, in this order, whether it
    /// serves or not, and come before everybody else's.
    #[must_use]
    pub fn own(mut self, names: &[String], addresses: &[IpAddr]) -> Self {
        self.names = names.iter().filter_map(|name| comparable(name)).collect();
        self.addresses = addresses.to_vec();
        self
    }

    /// The search domains in its resolv.conf. A name of ours with one of them appended is answered where the name servers
    /// do not know it.
    #[must_use]
    pub fn search(mut self, domains: &[String]) -> Self {
        self.search = domains.iter().filter_map(|domain| comparable(domain)).collect();
        self
    }

    /// The options in its resolv.conf (resolv.conf(5)), as far as they matter here: with `ndots:1` and more, host names
    /// of a single label that are not ours do not leave the host. The others are the client's own business.
    #[must_use]
    pub fn options(mut self, options: &[String]) -> Self {
        self.ndots = options
            .iter()
            .filter_map(|option| option.strip_prefix("ndots:"))
            .filter_map(|dots| dots.parse().ok())
            .next_back()
            .unwrap_or(0);
        self
    }

    /// Who is asked for names that are not ours. [`Upstream::None`] where nothing was set: the sandbox has no way out.
    #[must_use]
    pub fn upstream(mut self, upstream: Upstream) -> Self {
        self.upstream = upstream;
        self
    }

    pub(crate) fn name_servers(&self) -> &Upstream {
        &self.upstream
    }

    pub(crate) fn has_way_out(&self) -> bool {
        !matches!(self.upstream, Upstream::None)
    }

    /// Whether host names of one label go to the name servers.
    pub(crate) fn forwards_single_labels(&self) -> bool {
        self.ndots == 0
    }

    /// The addresses behind a name of ours, in no order but for our own. `None`: it is not ours.
    pub(crate) fn addresses(&self, name: &str, family: Family) -> Option<Found> {
        if name.is_empty() {
            return None;
        }
        if self.names.iter().any(|own| own == name) {
            let own = self.addresses.iter().copied().filter(|&address| family.wants(address)).collect();
            return Some(Found { addresses: own, ordered: true });
        }
        let found = self.networks.iter().find_map(|network| network.read(|zone| zone.addresses(name, family)));
        let qualified = || {
            self.networks.iter().find_map(|network| {
                let name = name.strip_suffix(network.name.as_deref()?)?.strip_suffix('.')?;
                network.read(|zone| zone.addresses(name, family))
            })
        };
        found.or_else(qualified).map(|addresses| Found { addresses, ordered: false })
    }

    /// The same for a name that carries one of the search domains.
    pub(crate) fn searched(&self, name: &str, family: Family) -> Option<Found> {
        self.search.iter().find_map(|domain| {
            let name = name.strip_suffix(domain.as_str())?.strip_suffix('.')?;
            self.addresses(name, family)
        })
    }

    /// What an address is called.
    pub(crate) fn name_of(&self, address: IpAddr) -> Called {
        for network in &self.networks {
            if let Some(name) = network.read(|zone| zone.name_of(address).map(|name| name.map(str::to_owned))) {
                return name.map_or(Called::Nameless, Called::Name);
            }
        }
        if self.addresses.contains(&address) {
            return self.names.first().cloned().map_or(Called::Nameless, Called::Name);
        }
        match self.networks.iter().any(|network| network.contains(address)) {
            true => Called::Nobody,
            false => Called::NotOurs,
        }
    }
}

/// Addresses behind a name.
pub(crate) struct Found {
    pub(crate) addresses: Vec<IpAddr>,
    /// The order means something.
    pub(crate) ordered: bool,
}

/// What an address is called.
pub(crate) enum Called {
    Name(String),
    /// Somebody has it who has no name.
    Nameless,
    /// It is in a subnet of ours, and nobody has it.
    Nobody,
    NotOurs,
}
