//! A network as `network inspect` prints it.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::Serialize;
use skep_proto::cidr::{Cidr, address_from_wire};
use skep_proto::v1;

use super::mesh::MeshView;
use super::service::PortView;
use super::{MetaView, state};

/// Where a network is known: all of them in the whole swarm.
pub(crate) const SCOPE: &str = "swarm";

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct NetworkView {
    name: String,
    id: String,
    /// The same as `CreatedAt`, under Docker's name.
    created: String,
    #[serde(flatten)]
    meta: MetaView,
    scope: &'static str,
    driver: &'static str,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: bool,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: bool,
    #[serde(rename = "IPAM")]
    ipam: Ipam,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_from: ConfigFrom,
    config_only: bool,
    /// VXLAN network identifier; 0 where it is no overlay.
    #[serde(rename = "VNI")]
    vni: u32,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
    /// How full its subnets are.
    address_use: Vec<AddressUse>,
    /// The tasks on it, by their ids.
    containers: BTreeMap<String, Endpoint>,
    /// The services on it, by their names.
    services: BTreeMap<String, Service>,
    /// The hosts on it.
    peers: Vec<Peer>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Ipam {
    driver: &'static str,
    /// There are none; Docker has the field.
    options: BTreeMap<String, String>,
    config: Vec<Subnet>,
}

/// Docker's networks that are only settings of others. There are none; Docker has the field.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
struct ConfigFrom {
    network: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Subnet {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
    auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct AddressUse {
    subnet: String,
    total: u64,
    taken: u64,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    name: String,
    #[serde(rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(rename = "IPv6Address")]
    ipv6_address: String,
    #[serde(rename = "ServiceID")]
    service_id: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    node_hostname: String,
    /// Whether its service's names and virtual addresses lead to it.
    serving: bool,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(rename = "ID")]
    id: String,
    /// The first virtual address; empty with dnsrr.
    #[serde(rename = "VIP")]
    vip: String,
    #[serde(rename = "VirtualIPs")]
    virtual_ips: Vec<String>,
    aliases: Vec<String>,
    /// Published by the routing mesh; on its own network only.
    ports: Vec<PortView>,
    /// With `--verbose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    tasks: Option<Vec<Task>>,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Task {
    name: String,
    #[serde(rename = "EndpointID")]
    endpoint_id: String,
    #[serde(rename = "EndpointIP")]
    endpoint_ip: String,
    info: TaskInfo,
}

#[derive(Debug, Clone, Serialize)]
struct TaskInfo {
    #[serde(rename = "Host IP")]
    host_ip: String,
}

#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Peer {
    /// The node's hostname.
    name: String,
    /// Where its end of the overlay is.
    #[serde(rename = "IP")]
    ip: String,
    #[serde(rename = "NodeID")]
    node_id: String,
    /// `ip:port` of its end of the encrypted mesh.
    wire_guard_addr: String,
    /// Its own addresses on the routing mesh's network.
    addresses: Vec<String>,
    /// WireGuard key, with `--verbose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    public_key: Option<String>,
    /// How it sees the other hosts of this network in the mesh, with `--verbose`, of an encrypted network.
    #[serde(skip_serializing_if = "Option::is_none")]
    mesh: Option<MeshView>,
    #[serde(skip)]
    id: Vec<u8>,
}

/// Addresses with the prefix lengths of the subnets that they are in, as Docker writes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Prefixes(Vec<Cidr>);

impl Prefixes {
    /// Those of a network.
    pub(crate) fn of(network: &v1::Network) -> Self {
        Self(network.subnets.iter().filter_map(|subnet| subnet.subnet.parse().ok()).collect())
    }

    /// `10.0.1.5/24`; the bare address where it is in no subnet.
    pub(crate) fn text(&self, bytes: &[u8]) -> String {
        let Some(address) = address_from_wire(bytes) else {
            // Not ours to refuse: show what came.
            return bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        };
        match self.0.iter().find(|cidr| cidr.contains(address)) {
            Some(cidr) => format!("{address}/{}", cidr.length()),
            None => address.to_string(),
        }
    }
}

/// Without prefix length.
pub(crate) fn bare(bytes: &[u8]) -> String {
    Prefixes::default().text(bytes)
}

impl NetworkView {
    /// From the answer of `Networks.Get` and the nodes, which are asked for their hostnames.
    pub(crate) fn new(answer: v1::GetNetworkResponse, nodes: &[v1::Node], verbose: bool) -> Self {
        let network = answer.network.unwrap_or_default();
        let prefixes = Prefixes::of(&network);
        let spec = network.spec.unwrap_or_default();
        let has_v6 = |v6: bool| prefixes.0.iter().any(|cidr| cidr.is_ipv4() != v6);
        let hostname = |id: &[u8]| hostname(nodes, id);
        let peer_ip = |id: &[u8]| answer.peers.iter().find(|peer| peer.node_id == id).map(ip).unwrap_or_default();
        let meta: MetaView = network.meta.as_ref().into();
        Self {
            id: super::id(&network.id),
            created: meta.created_at.clone(),
            meta,
            scope: SCOPE,
            driver: state::driver(spec.driver()),
            enable_ipv4: has_v6(false),
            enable_ipv6: has_v6(true),
            ipam: Ipam {
                driver: "default",
                options: BTreeMap::new(),
                config: network.subnets.iter().map(|subnet| subnet_view(subnet, &spec)).collect(),
            },
            internal: spec.internal,
            attachable: spec.attachable,
            ingress: spec.ingress,
            config_from: ConfigFrom::default(),
            config_only: false,
            vni: network.vni,
            address_use: answer
                .addresses
                .into_iter()
                .map(|used| AddressUse { subnet: used.subnet, total: used.total, taken: used.taken })
                .collect(),
            containers: answer
                .endpoints
                .iter()
                .map(|endpoint| (super::id(&endpoint.task_id), endpoint_view(endpoint, &prefixes, hostname)))
                .collect(),
            services: answer
                .services
                .iter()
                .map(|service| {
                    let own = answer.endpoints.iter().filter(|endpoint| endpoint.service_id == service.service_id);
                    let tasks = verbose.then(|| own.map(|endpoint| task_view(endpoint, peer_ip)).collect());
                    let name = service.names.first().cloned().unwrap_or_else(|| super::id(&service.service_id));
                    (name, service_view(service, tasks))
                })
                .collect(),
            peers: answer.peers.iter().map(|peer| peer_view(peer, &prefixes, hostname, verbose)).collect(),
            name: spec.name,
            options: spec.options,
            labels: spec.labels,
        }
    }
}

impl NetworkView {
    /// Adds what the hosts on it, whose ids are `peers`, say of the mesh.
    pub(crate) fn with_mesh(mut self, said: Option<BTreeMap<Vec<u8>, v1::NodeMesh>>, peers: &[Vec<u8>]) -> Self {
        let Some(mut said) = said else { return self };
        let names: BTreeMap<Vec<u8>, String> =
            self.peers.iter().map(|peer| (peer.id.clone(), peer.name.clone())).collect();
        for peer in &mut self.peers {
            let hostname = |id: &[u8]| names.get(id).cloned().unwrap_or_default();
            let mesh = said.remove(&peer.id).map(|said| MeshView::new(said, hostname, Some(peers)));
            peer.mesh = Some(mesh.unwrap_or_else(|| MeshView::failed("it was not asked".to_owned())));
        }
        self
    }
}

/// Empty where the node is gone.
fn hostname(nodes: &[v1::Node], id: &[u8]) -> String {
    let node = nodes.iter().find(|node| node.id == id);
    node.and_then(|node| node.description.as_ref()).map(|description| description.hostname.clone()).unwrap_or_default()
}

/// What a subnet got, with what the spec keeps from tasks.
fn subnet_view(subnet: &v1::Subnet, spec: &v1::NetworkSpec) -> Subnet {
    let same = |asked: &&v1::SubnetSpec| asked.subnet.parse::<Cidr>().ok() == subnet.subnet.parse().ok();
    Subnet {
        subnet: subnet.subnet.clone(),
        ip_range: subnet.ip_range.clone(),
        gateway: subnet.gateway.clone(),
        auxiliary_addresses: spec
            .subnets
            .iter()
            .find(same)
            .map(|asked| asked.reserved_addresses.clone())
            .unwrap_or_default(),
    }
}

/// `web.1.id`: the last of its names; a hostname that the user chose comes before it.
fn endpoint_name(endpoint: &v1::NetworkEndpoint) -> String {
    endpoint.names.last().cloned().unwrap_or_default()
}

fn endpoint_view(endpoint: &v1::NetworkEndpoint, prefixes: &Prefixes, hostname: impl Fn(&[u8]) -> String) -> Endpoint {
    let of_length = |length: usize| {
        let address = endpoint.addresses.iter().find(|address| address.len() == length);
        address.map(|address| prefixes.text(address)).unwrap_or_default()
    };
    Endpoint {
        name: endpoint_name(endpoint),
        ipv4_address: of_length(4),
        ipv6_address: of_length(16),
        service_id: super::id(&endpoint.service_id),
        node_id: super::id(&endpoint.node_id),
        node_hostname: hostname(&endpoint.node_id),
        serving: endpoint.state() == v1::EndpointState::Serving && !endpoint.last_resort,
    }
}

fn service_view(service: &v1::NetworkService, tasks: Option<Vec<Task>>) -> Service {
    let virtual_ips: Vec<String> = service.virtual_addresses.iter().map(|address| bare(address)).collect();
    Service {
        id: super::id(&service.service_id),
        vip: virtual_ips.first().cloned().unwrap_or_default(),
        virtual_ips,
        aliases: service.names.iter().skip(1).cloned().collect(),
        ports: service.ports.iter().map(PortView::from).collect(),
        tasks,
    }
}

fn task_view(endpoint: &v1::NetworkEndpoint, peer_ip: impl Fn(&[u8]) -> String) -> Task {
    Task {
        name: endpoint_name(endpoint),
        endpoint_id: super::id(&endpoint.task_id),
        endpoint_ip: endpoint.addresses.first().map(|address| bare(address)).unwrap_or_default(),
        info: TaskInfo { host_ip: peer_ip(&endpoint.node_id) },
    }
}

/// Where the other hosts reach it.
fn ip(peer: &v1::NetworkPeer) -> String {
    peer.endpoint.as_ref().map(|endpoint| endpoint.vxlan_addr.clone()).unwrap_or_default()
}

fn peer_view(peer: &v1::NetworkPeer, prefixes: &Prefixes, hostname: impl Fn(&[u8]) -> String, verbose: bool) -> Peer {
    let endpoint = peer.endpoint.clone().unwrap_or_default();
    Peer {
        name: hostname(&peer.node_id),
        ip: ip(peer),
        node_id: super::id(&peer.node_id),
        addresses: peer.addresses.iter().map(|address| prefixes.text(address)).collect(),
        public_key: verbose.then(|| BASE64_STANDARD.encode(&endpoint.public_key)),
        mesh: None,
        id: peer.node_id.clone(),
        wire_guard_addr: endpoint.wireguard_addr,
    }
}

#[cfg(test)]
#[path = "network_test.rs"]
mod network_test;
