//! One network on this host: its table, the plans made from it, and what of it is in the kernel.
//!
//! Everything here happens under the network's own lock, on threads that may block.

mod check;
mod ports;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use skep_netlink::NetlinkError;
use skep_netlink::nft::{Nft, Transaction};
use skep_proto::id::{NetworkId, NodeId, TaskId};
use skep_proto::v1;

use super::keep::{Journal, KeptTable};
use super::{Netd, NetdError, define};
use crate::host::{Published, Taken};
use crate::network::{self, LiveNetwork, OverlayPort, PORT, plug};
use crate::plan::balance::{Balance, Kind};
use crate::plan::drain;
use crate::plan::forwarding::{Forwarding, Way};
use crate::plan::ingress::Port;
use crate::plan::{local, names};
use crate::table::{FollowedTable, Table, TableChange, TableError};

pub(super) use check::{Looked, Trial};

/// How long what was found of a network holds for sandboxes that come to it: the largest packet of the host's device is
/// what may change by itself.
const LATELY: Duration = Duration::from_secs(1);

/// A sandbox on the network.
pub(super) struct Member {
    pub(super) nft: Arc<Nft>,
    /// Its rules are not as they should be.
    stale: bool,
}

/// What becomes of a sandbox that leaves a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It is on other networks still.
    Stays,
    /// It ends, and its devices with it.
    Ends,
}

/// A network on this host.
pub(super) struct NetworkState {
    pub(super) id: NetworkId,
    pub(super) definition: Option<Arc<v1::Network>>,
    pub(super) followed: FollowedTable,
    pub(super) names: Option<Arc<skep_dns::Network>>,
    balances: Vec<Balance>,
    /// Of the routing mesh, by family.
    ingress: Vec<Balance>,
    /// As which host names and balancing see a network that each host has its own of.
    seen_as: Option<NodeId>,
    forwarding: Option<Forwarding>,
    forwarding_own: Option<NodeId>,
    pub(super) live: Option<Arc<LiveNetwork>>,
    index: Option<u16>,
    /// Tasks that are being attached or are.
    pub(super) holders: BTreeSet<TaskId>,
    pub(super) members: BTreeMap<TaskId, Member>,
    /// Published in mode host, with the address of the task.
    pub(super) host_ports: BTreeMap<TaskId, Vec<(Port, IpAddr)>>,
    /// What the host hands on to the routing mesh.
    served: BTreeSet<Published>,
    /// The kernel is not as the plans say.
    dirty: bool,
    /// When what is wanted was last compared with what there is.
    ensured: Option<Instant>,
    dropped: bool,
    /// What could not be done, and is tried again.
    pub(super) fault: Option<String>,
    journal: Journal,
}

impl NetworkState {
    pub(super) fn new(journal: Journal, id: NetworkId) -> Self {
        Self {
            id,
            definition: None,
            followed: FollowedTable::default(),
            names: None,
            balances: Vec::new(),
            ingress: Vec::new(),
            seen_as: None,
            forwarding: None,
            forwarding_own: None,
            live: None,
            index: None,
            holders: BTreeSet::new(),
            members: BTreeMap::new(),
            host_ports: BTreeMap::new(),
            served: BTreeSet::new(),
            dirty: false,
            ensured: None,
            dropped: false,
            fault: None,
            journal,
        }
    }

    /// Its file.
    pub(super) fn journal(&mut self) -> &mut Journal {
        &mut self.journal
    }

    /// Remembers whether something could not be done that may be done later. What only another table can make right is
    /// no such thing.
    pub(super) fn note(&mut self, error: Option<&NetdError>) {
        if !matches!(error, Some(NetdError::Table(_))) {
            self.fault = error.map(|error| super::text(error));
        }
    }

    /// Tries again what could not be done.
    pub(super) fn try_again(&mut self, netd: &Netd) {
        let tried = self
            .reconfigure(netd)
            .and_then(|()| self.repair(netd))
            .and_then(|()| self.publish_host_ports(netd, Taken::Insist));
        if self.fault.is_some() && tried.is_ok() {
            tracing::info!(network = %self.id, "it is as it should be again");
        }
        self.note(tried.as_ref().err());
    }

    /// Its name in devices' names.
    fn short(&self, netd: &Netd) -> String {
        if self.id == define::LOCAL { netd.instance.clone() } else { self.id.to_string().chars().take(12).collect() }
    }

    /// The network as its table has it, while there is one.
    pub(super) fn told(&self) -> Option<Arc<v1::Network>> {
        if self.dropped { None } else { self.followed.current().network.clone() }
    }

    /// The version of its table that is in force. 0: none.
    pub(super) fn version(&self) -> u64 {
        if self.dropped { 0 } else { self.followed.current().version }
    }

    /// Takes the definition where it has none yet, and makes the plans for it.
    pub(super) fn define(&mut self, network: &Arc<v1::Network>) -> Result<(), NetdError> {
        let subnets = define::subnets(network)?;
        if self.names.is_none() {
            let pairs: Vec<(IpAddr, u8)> =
                subnets.iter().map(|subnet| (subnet.prefix.network(), subnet.prefix.length)).collect();
            self.names = Some(skep_dns::Network::new(define::name(network), &pairs));
            let table = format!("skep-{}", self.id);
            for ipv6 in [false, true] {
                if subnets.iter().any(|subnet| subnet.prefix.address.is_ipv6() == ipv6) {
                    self.balances.push(Balance::new(Kind::Addresses, &table, ipv6));
                    if define::ingress(network) {
                        self.ingress.push(Balance::new(Kind::Ports, "skep-ingress", ipv6));
                    }
                }
            }
        }
        self.definition = Some(Arc::clone(network));
        Ok(())
    }

    /// Takes a table's messages and makes everything follow them, once for all. Returns the tasks here whose own rows
    /// changed, and the first thing that could not be done.
    pub(super) fn apply(&mut self, netd: &Netd, messages: &[v1::NetworkTable]) -> (Vec<TaskId>, Option<NetdError>) {
        let mut before = self.followed.current().clone();
        let mut failed = None;
        for message in messages {
            let taken = match message.dropped {
                true => self.drop_table(netd).map(|()| before = self.followed.current().clone()),
                false => self.take(message).map_err(NetdError::from),
            };
            if let Err(error) = taken {
                let lost = matches!(error, NetdError::Table(TableError::Gap { .. }));
                failed = failed.or(Some(error));
                if lost {
                    break;
                }
            }
        }
        let change = self.followed.current().since(&before);
        let done = match change.is_empty() {
            true => self.repair(netd).map(|()| Vec::new()),
            false => self.follow(netd, &change),
        };
        match done {
            Ok(touched) => (touched, failed),
            Err(error) => (Vec::new(), failed.or(Some(error))),
        }
    }

    fn take(&mut self, message: &v1::NetworkTable) -> Result<(), TableError> {
        let alone = !message.complete && !self.followed.is_pending();
        if self.followed.take(self.id, message)? {
            self.dropped = false;
            self.journal.keep(self.followed.current(), alone.then_some(message));
        }
        Ok(())
    }

    /// The host has no task on the network any more.
    fn drop_table(&mut self, netd: &Netd) -> Result<(), NetdError> {
        self.dropped = true;
        if self.followed.current().version > 0 {
            self.journal.drop_table(self.followed.current());
        }
        self.tidy(netd)
    }

    /// Takes what an earlier netd has kept.
    pub(super) fn restore(&mut self, netd: &Netd, kept: KeptTable) -> Result<(), NetdError> {
        self.followed = kept.followed;
        self.dropped = kept.dropped;
        if self.followed.current().version == 0 {
            self.journal.remove();
            return Ok(());
        }
        let all = self.followed.current().all();
        self.follow(netd, &all).map(drop)
    }

    /// Makes everything follow a change of the table. Returns the tasks here whose own rows changed.
    fn follow(&mut self, netd: &Netd, change: &TableChange) -> Result<Vec<TaskId>, NetdError> {
        if let Some(network) = self.followed.current().network.clone() {
            self.define(&network)?;
        }
        self.see_as(netd.config().node);
        let seen = if self.each_host_has_its_own() { Some(local::change(change, self.seen_as)) } else { None };
        let seen = seen.as_ref().unwrap_or(change);
        if let Some(zone) = &self.names {
            match seen.endpoints.len() + seen.services.len() > 1000 {
                true => zone.replace(names::whole(&self.seen_table())),
                false => zone.change(|zone| names::change(zone, seen)),
            }
        }
        let balanced = self.balance(seen);
        let ended = drain::ended(self.followed.current(), change);
        let forwarded = self.forward(netd, change);
        let published = self.publish(netd, change);
        self.dirty = forwarded.is_err() || published.is_err() || self.dirty;
        // After the balancing: what comes next goes elsewhere.
        netd.drain.forget(self.balanced_places(), ended);
        balanced?;
        forwarded?;
        published?;
        let own_row = netd.config().node.is_some_and(|node| change.peers.contains_key(&node));
        if change.network || own_row {
            self.reconfigure(netd)?;
        }
        self.repair(netd)?;
        Ok(change.endpoints.keys().filter(|task| self.holders.contains(task)).copied().collect())
    }

    fn each_host_has_its_own(&self) -> bool {
        self.definition.as_ref().is_some_and(|definition| define::local_only(definition))
    }

    /// The table as names and balancing see it.
    fn seen_table(&self) -> Table {
        let table = self.followed.current();
        if self.each_host_has_its_own() { local::table(table, self.seen_as) } else { table.clone() }
    }

    /// Takes which host this is: what was planned as another one is planned again.
    fn see_as(&mut self, own: Option<NodeId>) {
        if self.seen_as == own || !self.each_host_has_its_own() {
            return;
        }
        self.seen_as = own;
        let table = self.seen_table();
        if let Some(zone) = &self.names {
            zone.replace(names::whole(&table));
        }
        for balance in &mut self.balances {
            *balance = balance.afresh();
            let _ = balance.change(&table, &table.all());
        }
        for member in self.members.values_mut() {
            member.stale = true;
        }
    }

    /// Where its connections are balanced.
    fn balanced_places(&self) -> Vec<Arc<Nft>> {
        let ingress = self.live.iter().filter(|_| !self.ingress.is_empty()).map(|live| Arc::clone(live.nft()));
        self.members.values().map(|member| Arc::clone(&member.nft)).chain(ingress).collect()
    }

    /// One transaction for each family, worked out once, in every sandbox.
    fn balance(&mut self, change: &TableChange) -> Result<(), NetdError> {
        let table = self.followed.current();
        let mut first = Ok(());
        for balance in &mut self.balances {
            let transaction = balance.change(table, change);
            if transaction.is_empty() {
                continue;
            }
            for member in self.members.values_mut().filter(|member| !member.stale) {
                if let Err(error) = member.nft.commit(&transaction) {
                    member.stale = true;
                    first = first.and(Err(error.into()));
                }
            }
        }
        first
    }

    fn forward(&mut self, netd: &Netd, change: &TableChange) -> Result<(), NetdError> {
        let Some(own) = netd.config().node else { return Ok(()) };
        let table = self.followed.current();
        let encrypted = self.definition.as_ref().is_some_and(|definition| define::encrypted(definition));
        let port = self.port();
        let forwarding = match &mut self.forwarding {
            Some(forwarding) if self.forwarding_own == Some(own) => forwarding,
            _ => {
                let mut forwarding = Forwarding::new(own, if encrypted { Way::Mesh } else { Way::Underlay });
                let _ = forwarding.change(table, &table.all(), PORT);
                self.forwarding = Some(forwarding);
                self.forwarding_own = Some(own);
                return self.sync_neighbours(netd);
            }
        };
        // The entries follow the table in any case.
        let told = match port.and_then(OverlayPort::in_mesh).filter(|_| !change.peers.is_empty()) {
            Some(vni) => netd.mesh.follow_peers(vni, table),
            None => Ok(()),
        };
        if let Some(OverlayPort::Fabric { vni, .. }) = port {
            let forwards = forwarding.change_forwards(table, change);
            told?;
            match netd.mesh.is_attached(vni) {
                true => netd.mesh.forward(vni, forwards)?,
                // Another device runs now: everything is told to it when the network is attached there.
                false => self.dirty = true,
            }
            return Ok(());
        }
        let changes = forwarding.change(table, change, PORT);
        told?;
        match &self.live {
            Some(live) if live.wanted().port != OverlayPort::Local => Ok(live.change_neighbours(&changes)?),
            _ => Ok(()),
        }
    }

    fn sync_neighbours(&self, netd: &Netd) -> Result<(), NetdError> {
        let (Some(live), Some(forwarding)) = (&self.live, &self.forwarding) else { return Ok(()) };
        match live.wanted().port {
            OverlayPort::Vxlan { .. } => live.sync_neighbours(forwarding.entries(PORT))?,
            OverlayPort::Sealed { vni, .. } => {
                netd.mesh.follow_peers(vni, self.followed.current())?;
                live.sync_neighbours(forwarding.entries(PORT))?;
            }
            OverlayPort::Fabric { vni, .. } => {
                netd.mesh.follow_peers(vni, self.followed.current())?;
                netd.mesh.sync_forwards(vni, forwarding.forwards().collect())?;
            }
            OverlayPort::Local => {}
        }
        Ok(())
    }

    /// The way to other hosts that it has.
    fn port(&self) -> Option<OverlayPort> {
        self.live.as_ref().map(|live| live.wanted().port)
    }

    /// The routing mesh.
    fn publish(&mut self, netd: &Netd, change: &TableChange) -> Result<(), NetdError> {
        if self.ingress.is_empty() {
            return Ok(());
        }
        let table = self.followed.current();
        let changes: Vec<Transaction> = self.ingress.iter_mut().map(|balance| balance.change(table, change)).collect();
        if self.live.is_none() {
            if self.is_wanted() {
                self.ensure_live(netd)?;
            }
            return Ok(());
        }
        if let Some(live) = &self.live {
            for transaction in changes.iter().filter(|transaction| !transaction.is_empty()) {
                live.nft().commit(transaction)?;
            }
        }
        self.serve(netd)
    }

    /// Whether nothing is known of it, and nothing is there.
    pub(super) fn is_empty(&self) -> bool {
        self.followed.current().version == 0 && self.holders.is_empty() && self.live.is_none() && !self.dirty
    }

    /// Whether the network has to be there.
    fn is_wanted(&self) -> bool {
        let published = || self.followed.current().services.values().any(|service| !service.ports.is_empty());
        !self.holders.is_empty() || (!self.dropped && !self.ingress.is_empty() && published())
    }

    /// Does what [`ensure_live`](Self::ensure_live) does, unless that was done a moment ago: for one of many sandboxes.
    pub(super) fn ensure_live_lately(&mut self, netd: &Netd) -> Result<(), NetdError> {
        let lately = self.ensured.is_some_and(|when| when.elapsed() < LATELY);
        if lately && self.live.is_some() && !self.dirty { Ok(()) } else { self.ensure_live(netd) }
    }

    /// Makes the network's namespace, or makes it right, with all that is planned for it.
    pub(super) fn ensure_live(&mut self, netd: &Netd) -> Result<(), NetdError> {
        let Some(definition) = self.definition.clone() else { return Ok(()) };
        let spec = definition.spec.as_ref();
        if spec.is_some_and(|spec| spec.driver() == v1::NetworkDriver::Macvlan) {
            return Ok(());
        }
        if self.index.is_none() && !define::internal(&definition) {
            self.index = Some(netd.take_index(self.id)?);
        }
        let config = netd.config();
        let underlay = |address| Ok(netd.host.underlay_mtu(address)?);
        let sealed = |vni| {
            netd.mesh.follow_peers(vni, self.followed.current())?;
            Ok(netd.mesh.port(vni)?)
        };
        let (table, short) = (self.followed.current(), self.short(netd));
        let wanted = define::wanted(&definition, table, &config, short, self.index, underlay, sealed);
        let wanted = match wanted {
            Ok(wanted) => wanted,
            Err(error) => {
                self.dirty |= self.live.is_some();
                self.release_index(netd);
                if self.live.is_none() {
                    netd.mesh.leave(definition.vni)?;
                }
                return Err(error);
            }
        };
        self.ensured = Some(Instant::now());
        if !self.dirty && self.live.as_ref().is_some_and(|live| *live.wanted() == wanted) {
            return Ok(());
        }
        // Until all of it is done.
        self.dirty = true;
        if self.index.is_some() {
            netd.host.forward(wanted.ipv6())?;
        }
        self.live = Some(Arc::new(LiveNetwork::ensure(&netd.network_dir(self.id), &wanted, &netd.host, &netd.mesh)?));
        if self.forwarding.is_none() || self.forwarding_own != config.node {
            self.forward(netd, &TableChange::default())?;
        }
        self.sync_neighbours(netd)?;
        if let Some(live) = self.live.iter().find(|_| !self.ingress.is_empty()) {
            for balance in &self.ingress {
                live.nft().commit(&balance.whole(None))?;
            }
            let own = define::own_ingress(&definition, self.followed.current(), &config);
            live.source_ingress(own, define::keep_source(&definition))?;
        }
        self.publish_host_ports(netd, Taken::Insist)?;
        self.serve(netd)?;
        self.dirty = false;
        Ok(())
    }

    /// Follows a changed configuration of this host, where the network is there.
    pub(super) fn reconfigure(&mut self, netd: &Netd) -> Result<(), NetdError> {
        self.see_as(netd.config().node);
        if self.live.is_some() || self.is_wanted() { self.ensure_live(netd) } else { Ok(()) }
    }

    /// Tries again what failed before, and takes over what an earlier netd left.
    fn repair(&mut self, netd: &Netd) -> Result<(), NetdError> {
        let left = self.live.is_none() && self.definition.is_some() && network::is_there(&netd.network_dir(self.id));
        let needed = self.live.is_some() || self.is_wanted();
        if left || (self.dirty && needed) {
            self.ensure_live(netd)?;
        }
        if !self.ingress.is_empty() && !self.is_wanted() {
            self.tidy(netd)?;
        }
        let stale: Vec<TaskId> = self.members.iter().filter(|(_, member)| member.stale).map(|(id, _)| *id).collect();
        for task in stale {
            let whole: Vec<Transaction> = self.balances.iter().map(|balance| balance.whole(None)).collect();
            if let Some(member) = self.members.get_mut(&task) {
                for transaction in &whole {
                    member.nft.commit(transaction)?;
                }
                member.stale = false;
            }
        }
        Ok(())
    }

    /// Puts the balancing into a sandbox, and keeps it up to date from now on.
    pub(super) fn join(&mut self, task: TaskId, nft: &Arc<Nft>) -> Result<(), NetlinkError> {
        for balance in &self.balances {
            nft.commit(&balance.whole(None))?;
        }
        self.members.insert(task, Member { nft: Arc::clone(nft), stale: false });
        Ok(())
    }

    /// Forgets a sandbox; the network goes with the last.
    pub(super) fn leave(&mut self, netd: &Netd, task: TaskId, device: &str, then: Then) -> Result<(), NetdError> {
        match (&self.live, then) {
            (Some(live), Then::Ends) => live.disconnect(device)?,
            (Some(live), Then::Stays) => live.unplug(device)?,
            (None, _) => {}
        }
        self.members.remove(&task);
        self.join_ports(netd, task, Vec::new(), Taken::Insist)?;
        self.holders.remove(&task);
        self.tidy(netd)
    }

    /// Removes the network where nothing needs it any more.
    pub(super) fn tidy(&mut self, netd: &Netd) -> Result<(), NetdError> {
        if self.is_wanted() {
            return Ok(());
        }
        // Of sandboxes that an earlier netd made and nobody has claimed yet.
        let found = match &self.live {
            Some(live) => live.has_sandboxes()?,
            None => plug::has_sandboxes(&netd.network_dir(self.id))?,
        };
        if found {
            return Ok(());
        }
        self.take_down(netd)
    }

    /// Removes all of it from the kernel.
    pub(super) fn take_down(&mut self, netd: &Netd) -> Result<(), NetdError> {
        let gone = self.served.iter().copied().chain(self.on_host());
        let gone: Vec<_> = gone.filter_map(|port| Some((port, self.index?))).collect();
        netd.publish(&[], &gone, Taken::LeaveOut)?;
        self.served.clear();
        if let Some(definition) = self.definition.as_ref().filter(|definition| define::encrypted(definition)) {
            netd.mesh.leave(definition.vni)?;
        }
        match self.live.take() {
            Some(live) => live.remove()?,
            None => network::remove(&netd.network_dir(self.id))?,
        }
        self.release_index(netd);
        self.dirty = false;
        if self.dropped {
            // What is known of it goes too: the next table comes whole.
            self.journal.remove();
            *self = Self::new(Journal::new(&netd.tables_dir(), self.id), self.id);
        }
        Ok(())
    }

    fn release_index(&mut self, netd: &Netd) {
        // One that an earlier netd made has its number still.
        if self.live.is_none()
            && network::index_of(&netd.network_dir(self.id)).is_none()
            && let Some(index) = self.index.take()
        {
            super::lock(&netd.indices).remove(&index);
        }
    }
}
