//! Sandboxes: attached to their networks, and detached.
//!
//! One task is worked on at a time by one caller; every step may be found done already. Runs on threads that may block.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use skep_dns::{Origin, Upstream, View};
use skep_netlink::{Inside, Namespace};
use skep_proto::cidr::address_to_wire;
use skep_proto::id::{NetworkId, ServiceId, TaskId};
use skep_proto::v1;

use super::define::{self, LOCAL};
use super::displace::displaced;
use super::request::{self, Place, task_of};
use super::state::{NetworkState, Then};
use super::{Attached, Netd, NetdError, keep, lock, text};
use crate::endpoint::{self, Plug, Unplug, Wanted};
use crate::host::Taken;
use crate::link;
use crate::plan::ingress::Port;

/// File with a sandbox's address on the host's own bridge, in its folder.
const LEASE: &str = "local-address";

/// The name of a sandbox's device on a network's bridge.
pub(super) fn device(task: TaskId) -> String {
    let id: String = task.to_string().chars().take(12).collect();
    format!("v-{id}")
}

/// What a network is, where a sandbox may come to it.
type Defined = fn(&NetworkState) -> Option<Arc<v1::Network>>;

/// An endpoint of the request, read.
struct Endpoint {
    id: NetworkId,
    definition: Arc<v1::Network>,
    addresses: Vec<IpAddr>,
}

impl Netd {
    /// Makes a sandbox with all its endpoints, or finds it made.
    pub(super) fn attach(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse, NetdError> {
        let task = task_of(&request)?;
        self.in_turn(task, || self.attach_noted(task, request, NetworkState::told))
    }

    /// Does so with what an earlier netd kept, also where no task needs the table any more.
    pub(super) fn attach_again(&self, request: v1::AttachRequest) -> Result<v1::AttachResponse, NetdError> {
        let task = task_of(&request)?;
        self.in_turn(task, || self.attach_noted(task, request, |state| state.definition.clone()))
    }

    /// Does so where it is missing still. `None`: it was attached or detached meanwhile.
    pub(super) fn attach_missing(&self, request: v1::AttachRequest) -> Result<Option<v1::AttachResponse>, NetdError> {
        let task = task_of(&request)?;
        self.in_turn(task, || {
            if !self.is_missing(task) {
                return Ok(None);
            }
            if !Namespace::is_at(&self.sandboxes.net(&task.to_string())) {
                // Whoever made it removed it: to make it anew would take its place from others.
                return self.detach_in_turn(task).map(|()| None);
            }
            self.attach_noted(task, request, |state| state.definition.clone()).map(Some)
        })
    }

    /// Works on a task as the only one.
    fn in_turn<T>(&self, task: TaskId, work: impl FnOnce() -> T) -> T {
        let turn = Arc::clone(lock(&self.tasks).entry(task).or_default());
        let done = {
            let _turn = lock(&turn);
            work()
        };
        drop(turn);
        // Forgotten where nobody else waits for it.
        lock(&self.tasks).retain(|id, turn| *id != task || Arc::strong_count(turn) > 1);
        done
    }

    /// Takes note of a sandbox that is there, and not attached as it ought to be.
    fn attach_noted(
        &self,
        task: TaskId,
        request: v1::AttachRequest,
        defined: Defined,
    ) -> Result<v1::AttachResponse, NetdError> {
        let there = Namespace::is_at(&self.sandboxes.net(&task.to_string()));
        let made = self.attach_in_turn(task, request.clone(), defined);
        match &made {
            Ok(_) => self.find_sandbox(task),
            // One that was displaced has ended: nothing of it is lost.
            Err(error) if there && self.refuse_displaced(task).is_ok() => {
                self.lose_sandbox(task, Some(request), text(error))
            }
            Err(_) => {}
        }
        made
    }

    fn attach_in_turn(
        &self,
        task: TaskId,
        request: v1::AttachRequest,
        defined: Defined,
    ) -> Result<v1::AttachResponse, NetdError> {
        let fresh = Namespace::open(&self.sandboxes.net(&task.to_string())).is_err();
        let before = lock(&self.attached).get(&task).cloned();
        if let Some(response) = before.as_ref().filter(|before| !fresh && before.request == request)
            && let Some(response) = &response.response
        {
            return Ok(response.clone());
        }
        let endpoints = self.endpoints(task, &request, defined)?;
        let networks: Vec<NetworkId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        // Whatever becomes of this, a detach knows where to look.
        let had = before.iter().flat_map(|before| &before.networks);
        let left: Vec<NetworkId> = had.filter(|id| !networks.contains(id)).copied().collect();
        let all: Vec<NetworkId> = networks.iter().chain(&left).copied().collect();
        self.note_asked(task, &request, all.clone())?;
        let taken = if fresh { Taken::Refuse } else { Taken::Insist };
        let made = self
            .attach_all(task, &request, &endpoints, defined, taken)
            .and_then(|response| self.keep_attached(task, &request, networks, left).map(|()| response));
        // The first error is the one to tell.
        if made.is_err() && fresh {
            let _ = self.detach_from(task, &all);
        } else if self.refuse_displaced(task).is_err() {
            let _ = all.iter().try_for_each(|id| self.leave(task, *id, Then::Ends));
        }
        made
    }

    /// Takes note of what is asked for, and in what order.
    fn note_asked(&self, task: TaskId, request: &v1::AttachRequest, networks: Vec<NetworkId>) -> Result<(), NetdError> {
        let mut attached = lock(&self.attached);
        let number = match attached.get(&task) {
            Some(known) if known.displaced => return Err(displaced()),
            Some(known) => known.number,
            None => self.asked.fetch_add(1, Ordering::Relaxed),
        };
        let asked = Attached { request: request.clone(), response: None, networks, number, displaced: false };
        attached.insert(task, asked);
        Ok(())
    }

    /// What is left to be done when a sandbox is attached.
    fn keep_attached(
        &self,
        task: TaskId,
        request: &v1::AttachRequest,
        networks: Vec<NetworkId>,
        left: Vec<NetworkId>,
    ) -> Result<(), NetdError> {
        for id in left {
            self.leave(task, id, Then::Stays)?;
        }
        if let Some(attached) = lock(&self.attached).get_mut(&task) {
            attached.networks = networks;
        }
        self.refuse_displaced(task)?;
        if let Err(error) = keep::write(&self.request_file(task), request) {
            tracing::warn!(task = %task, "cannot keep what its sandbox is: {error}");
        }
        // Now that it has all of it to leave again.
        self.refuse_displaced(task)
    }

    fn attach_all(
        &self,
        task: TaskId,
        request: &v1::AttachRequest,
        endpoints: &[Endpoint],
        defined: Defined,
        taken: Taken,
    ) -> Result<v1::AttachResponse, NetdError> {
        self.sandboxes.make(&task.to_string())?;
        let path = self.sandboxes.net(&task.to_string());
        let name = device(task);
        let mut wanted = Vec::new();
        for each in endpoints {
            wanted.push(self.endpoint(task, each, &name, defined)?);
        }
        if taken == Taken::Refuse {
            self.displace(task)?;
        }
        self.refuse_displaced(task)?;
        self.runtime.block_on(self.names.remove(&task.to_string()));
        let opened = endpoint::ensure(&path, &wanted, !endpoints.is_empty())?;
        let nft = Arc::new(opened.nft);
        let mut live = Vec::new();
        let mut ports: Vec<Port> = request.host_ports.iter().filter_map(Port::of).collect();
        for each in endpoints {
            let network = self.network(each.id);
            let mut state = lock(&network);
            state.join(task, &nft)?;
            live.extend(state.live.clone());
            let way_out = !define::internal(&each.definition) && !define::ingress(&each.definition);
            if way_out {
                let of_all = |port: Port| each.addresses.iter().map(move |address| (port, *address));
                let these = std::mem::take(&mut ports).into_iter().flat_map(of_all).collect();
                state.join_ports(self, task, these, taken)?;
            }
        }
        for network in live {
            if taken == Taken::Insist {
                // A netd may have ended while it cut the sandbox off.
                network.reconnect(&name)?;
            }
            network.wait_forwarding(&name)?;
        }
        if !ports.is_empty() {
            let problem = "ports of mode host take a network with a way out, and the task is on none".to_owned();
            return Err(NetdError::Refused(problem));
        }
        let mesh = endpoints.iter().find(|each| define::ingress(&each.definition));
        let response = v1::AttachResponse {
            namespace_path: path.to_string_lossy().into_owned(),
            addresses: endpoints.first().map_or_else(Vec::new, |first| {
                first.addresses.iter().map(|address| address_to_wire(*address)).collect()
            }),
            name_server: opened.sockets.is_some(),
            ports: mesh.map_or_else(Vec::new, |each| self.published(each.id, &request.service_id)),
        };
        let networks: Vec<NetworkId> = endpoints.iter().map(|endpoint| endpoint.id).collect();
        if let Some((udp, tcp)) = opened.sockets {
            self.names.add(&task.to_string(), udp, tcp, self.view(task, request, &networks))?;
        }
        if let Some(known) = lock(&self.attached).get_mut(&task) {
            known.response = Some(response.clone());
        }
        // A table that came meanwhile did not know that there is a name server.
        self.refresh_names(task);
        Ok(response)
    }

    /// Ports that the routing mesh publishes for a service, as far as its table says.
    fn published(&self, mesh: NetworkId, service: &[u8]) -> Vec<v1::PortSpec> {
        let network = self.network(mesh);
        let state = lock(&network);
        let row = ServiceId::from_wire(service).ok().and_then(|id| state.followed.current().services.get(&id));
        row.map_or_else(Vec::new, |row| row.ports.clone())
    }

    fn endpoints(
        &self,
        task: TaskId,
        request: &v1::AttachRequest,
        defined: Defined,
    ) -> Result<Vec<Endpoint>, NetdError> {
        let find = |request::End { network: id, addresses }| {
            let known = lock(&self.networks).get(&id).cloned();
            let definition = known.and_then(|network| defined(&lock(&network))).ok_or(NetdError::NoTable(id))?;
            Ok(Endpoint { id, definition, addresses })
        };
        let mut endpoints = request::ends(request)?.into_iter().map(find).collect::<Result<Vec<_>, NetdError>>()?;
        if request.local_bridge {
            let addresses = vec![self.lease(task)?];
            endpoints.insert(0, Endpoint { id: LOCAL, definition: Arc::new(define::local()), addresses });
        }
        Ok(endpoints)
    }

    /// Makes the network be there for the task, and says what its end is to be.
    fn endpoint<'a>(
        &'a self,
        task: TaskId,
        each: &Endpoint,
        name: &str,
        defined: Defined,
    ) -> Result<Wanted<'a>, NetdError> {
        let network = self.network(each.id);
        let mut state = lock(&network);
        match (each.id, defined(&state)) {
            (LOCAL, _) if state.definition.is_none() => state.define(&each.definition)?,
            (LOCAL, _) | (_, Some(_)) => {}
            // It was dropped a moment ago.
            (id, None) => return Err(NetdError::NoTable(id)),
        }
        state.holders.insert(task);
        state.ensure_live_lately(self)?;
        let Place { addresses, gateways, mac } = request::place(&each.definition, &each.addresses)?;
        let (plug, unplug): (Plug<'a>, Unplug<'a>) = match state.live.clone() {
            Some(live) => {
                let (name, again, other) = (name.to_owned(), name.to_owned(), Arc::clone(&live));
                let plug = move |inner: &str, sandbox: &Namespace| live.plug(&name, inner, mac, sandbox);
                (Box::new(plug), Box::new(move || other.unplug(&again)))
            }
            None => {
                let Some(parent) = define::option(&each.definition, "parent").map(str::to_owned) else {
                    let network = define::name(&each.definition);
                    return Err(NetdError::Refused(format!("macvlan network {network} has no option `parent`")));
                };
                let mtu = define::option(&each.definition, "mtu").and_then(|mtu| mtu.parse().ok());
                let plug =
                    move |inner: &str, sandbox: &Namespace| self.host.plug_macvlan(&parent, inner, mac, mtu, sandbox);
                (Box::new(plug), Box::new(|| Ok(())))
            }
        };
        let keep_source = define::keep_source(&each.definition);
        Ok(Wanted { addresses, mac, gateways, keep_source, plug, unplug })
    }

    /// Removes a sandbox. Idempotent.
    pub(super) fn detach(&self, request: &v1::DetachRequest) -> Result<(), NetdError> {
        let task = TaskId::from_wire(&request.task_id).map_err(|source| NetdError::Id("task", source))?;
        self.in_turn(task, || self.detach_in_turn(task))
    }

    fn detach_in_turn(&self, task: TaskId) -> Result<(), NetdError> {
        self.find_sandbox(task);
        let networks = lock(&self.attached).get(&task).map(|attached| attached.networks.clone());
        match networks {
            Some(networks) => self.detach_from(task, &networks),
            None => self.detach_found(task),
        }
    }

    fn detach_from(&self, task: TaskId, networks: &[NetworkId]) -> Result<(), NetdError> {
        self.runtime.block_on(self.names.remove(&task.to_string()));
        for id in networks {
            self.leave(task, *id, Then::Ends)?;
        }
        self.remove_sandbox(task)?;
        lock(&self.attached).remove(&task);
        Ok(())
    }

    /// Takes a sandbox off a network.
    pub(super) fn leave(&self, task: TaskId, id: NetworkId, then: Then) -> Result<(), NetdError> {
        let network = self.network(id);
        lock(&network).leave(self, task, &device(task), then)?;
        self.forget(&network, id);
        Ok(())
    }

    /// Removes a sandbox that an earlier netd made: nobody knows what networks it is on.
    fn detach_found(&self, task: TaskId) -> Result<(), NetdError> {
        let found = fs::read_dir(self.networks_dir()).into_iter().flatten().flatten();
        for dir in found.map(|entry| entry.path()) {
            let Ok(id) = dir.file_name().and_then(|name| name.to_str()).unwrap_or_default().parse::<NetworkId>() else {
                continue;
            };
            if let Ok(namespace) = Namespace::open(&dir.join("net")) {
                link::remove(&namespace.enter(Inside::rtnetlink)?, &device(task))?;
            }
            let network = self.network(id);
            lock(&network).tidy(self)?;
            self.forget(&network, id);
        }
        self.remove_sandbox(task)?;
        Ok(())
    }

    /// Removes what is left of networks that nothing needs any more: the netd before this one ended in the middle of that.
    pub(super) fn tidy_networks(&self) {
        let found = fs::read_dir(self.networks_dir()).into_iter().flatten().flatten();
        for id in found.filter_map(|entry| entry.file_name().to_str()?.parse::<NetworkId>().ok()) {
            let network = self.network(id);
            if let Err(error) = lock(&network).tidy(self) {
                tracing::warn!(network = %id, "what is left of it is not removed: {}", text(&error));
            }
            self.forget(&network, id);
        }
    }

    /// Takes a sandbox's own devices down: whoever holds its namespace, none of them has its addresses any more.
    pub(super) fn cut_off(&self, task: TaskId) -> Result<(), NetdError> {
        if let Ok(namespace) = Namespace::open(&self.sandboxes.net(&task.to_string())) {
            let rtnetlink = namespace.enter(Inside::rtnetlink)?;
            for device in rtnetlink.links()?.iter().filter(|device| device.name.starts_with("eth")) {
                // The network's own namespace may be going, and its pair with it.
                link::cut_off(&rtnetlink, device.index)?;
            }
        }
        Ok(())
    }

    /// Removes a sandbox's folder, and its namespace with the last process in it.
    fn remove_sandbox(&self, task: TaskId) -> Result<(), NetdError> {
        let name = task.to_string();
        self.cut_off(task)?;
        lock(&self.leases).remove(&task);
        self.sandboxes.remove(&name)?;
        Ok(())
    }

    /// What the sandbox's name server sees.
    fn view(&self, task: TaskId, request: &v1::AttachRequest, on: &[NetworkId]) -> View {
        let (mut networks, mut names, mut addresses) = (Vec::new(), Vec::new(), Vec::new());
        let mut way_out = false;
        for id in on {
            let network = self.network(*id);
            let state = lock(&network);
            let Some(definition) = &state.definition else { continue };
            way_out |= !define::internal(definition);
            if define::ingress(definition) || *id == LOCAL {
                continue;
            }
            networks.extend(state.names.clone());
            if let Some(row) = state.followed.current().endpoints.get(&task) {
                names.extend(row.names.iter().filter(|name| !names.contains(*name)).cloned().collect::<Vec<_>>());
                addresses.extend(row.addresses.iter().copied());
            }
        }
        let dns = request.dns.clone().unwrap_or_default();
        let servers = request::name_servers(&dns);
        let upstream = match (servers.is_empty(), way_out) {
            (false, _) => Upstream::servers(&servers, Origin::Namespace(self.sandboxes.net(&task.to_string()))),
            (true, true) => Upstream::Host,
            (true, false) => Upstream::None,
        };
        View::new(networks).own(&names, &addresses).search(&dns.search).options(&dns.options).upstream(upstream)
    }

    /// Brings a sandbox's own names up to date.
    pub(super) fn refresh_names(&self, task: TaskId) {
        let attached = lock(&self.attached).get(&task).cloned();
        if let Some(attached) = attached {
            self.names.update(&task.to_string(), self.view(task, &attached.request, &attached.networks));
        }
    }

    /// An address on the host's own bridge: the one that the task has, or a free one.
    fn lease(&self, task: TaskId) -> Result<IpAddr, NetdError> {
        let address = |last: u16| IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(172, 29, 0, 0)) + u32::from(last)));
        let dir = self.sandboxes.make(&task.to_string())?;
        let mut leases = lock(&self.leases);
        let last = match leases.get(&task) {
            Some(last) => *last,
            None => {
                let taken: std::collections::BTreeSet<u16> = leases.values().copied().collect();
                let Some(last) = (2..u16::MAX).find(|last| !taken.contains(last)) else {
                    return Err(NetdError::Refused("the host's own bridge has no free address".to_owned()));
                };
                let path = dir.join(LEASE);
                fs::write(&path, last.to_string()).map_err(|source| NetdError::File {
                    action: "write",
                    path,
                    source,
                })?;
                leases.insert(task, last);
                last
            }
        };
        Ok(address(last))
    }

    /// Finds the addresses that sandboxes of an earlier netd have.
    pub(super) fn find_leases(&self) {
        let read = |dir: &Path| fs::read_to_string(dir.join(LEASE)).ok()?.trim().parse::<u16>().ok();
        for name in self.found_sandboxes() {
            if let (Ok(task), Some(last)) = (name.parse::<TaskId>(), read(&self.sandboxes.dir(&name))) {
                lock(&self.leases).insert(task, last);
            }
        }
    }

    /// The names of all sandboxes that there are.
    pub(super) fn found_sandboxes(&self) -> Vec<String> {
        let entries = fs::read_dir(self.sandboxes.dir("")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}
