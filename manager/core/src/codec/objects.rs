//! Objects, there and back. `…_to_wire` is also what API and sessions send; only the cluster and credentials hold what
//! must not leave the managers: use `cluster_to_api`, and send a credential to nodes with a task of its service alone.

use std::sync::Arc;

use skep_proto::cidr::{address_from_wire, address_to_wire};
use skep_proto::id::{ClientId, ClusterId, CredentialId, IdError, NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1;

use super::error::DecodeError;
use crate::object::{
    Client, Cluster, Credential, ImageName, LiveChange, ManagerStatus, Meta, Network, NetworkAddresses, Node,
    NodeStatus, Revision, RevisionKey, RootRotation, Service, Slot, Subnet, Task,
};

pub(super) fn meta_to_wire(meta: Meta) -> Option<v1::Meta> {
    Some(v1::Meta { version: meta.version, created_at_ms: meta.created_at.0, updated_at_ms: meta.updated_at.0 })
}

pub(super) fn meta_from_wire(meta: Option<v1::Meta>) -> Meta {
    let meta = meta.unwrap_or_default();
    Meta { version: meta.version, created_at: UnixMs(meta.created_at_ms), updated_at: UnixMs(meta.updated_at_ms) }
}

/// Names the place of a bad id.
pub(super) fn bad_id(what: &'static str, field: &'static str) -> impl FnOnce(IdError) -> DecodeError {
    move |source| DecodeError::Id { what, field, source }
}

/// Reads an enumeration whose every value this build must understand.
pub(super) fn known<E: TryFrom<i32>>(value: i32, what: &'static str, field: &'static str) -> Result<E, DecodeError> {
    E::try_from(value).map_err(|_| DecodeError::UnknownValue { what, field, value })
}

pub fn cluster_to_wire(cluster: &Cluster) -> v1::Cluster {
    v1::Cluster {
        root_key_pem: cluster.root_key_pem.clone().into_bytes(),
        worker_token_secret: cluster.worker_token_secret.to_vec(),
        manager_token_secret: cluster.manager_token_secret.to_vec(),
        unlock_key: cluster.unlock_key.map(Vec::from).unwrap_or_default(),
        root_rotation: cluster.root_rotation.as_ref().map(|rotation| v1::RootRotation {
            root_key_pem: rotation.root_key_pem.clone().into_bytes(),
            ..rotation_to_api(rotation)
        }),
        ..cluster_to_api(cluster)
    }
}

fn rotation_to_api(rotation: &RootRotation) -> v1::RootRotation {
    v1::RootRotation {
        root_cert_pem: rotation.root_cert_pem.clone().into_bytes(),
        cross_signed_pem: rotation.cross_signed_pem.clone().into_bytes(),
        digest: rotation.digest.to_vec(),
        started_at_ms: rotation.started_at.0,
        ..v1::RootRotation::default()
    }
}

/// Without root keys, token secrets and unlock key.
pub fn cluster_to_api(cluster: &Cluster) -> v1::Cluster {
    v1::Cluster {
        id: cluster.id.to_vec(),
        meta: meta_to_wire(cluster.meta),
        spec: Some(cluster.spec.clone()),
        root_cert_pem: cluster.root_cert_pem.clone().into_bytes(),
        feature_level: cluster.feature_level,
        last_raft_id: cluster.last_raft_id,
        recovery_epoch: cluster.recovery_epoch,
        data_key_epoch: cluster.data_key_epoch,
        root_rotation: cluster.root_rotation.as_ref().map(|rotation| rotation_to_api(rotation)),
        ..v1::Cluster::default()
    }
}

pub fn cluster_from_wire(wire: v1::Cluster) -> Result<Cluster, DecodeError> {
    const WHAT: &str = "cluster object";
    let secret = |bytes: Vec<u8>, field| bytes.try_into().map_err(|_| DecodeError::Missing { what: WHAT, field });
    let unlock_key = match wire.unlock_key.is_empty() {
        true => None,
        false => {
            let key = wire.unlock_key.try_into();
            Some(key.map_err(|_| DecodeError::Missing { what: WHAT, field: "unlock key" })?)
        }
    };
    // PEM is text (RFC 7468).
    let pem = |bytes, field| String::from_utf8(bytes).map_err(|_| DecodeError::Missing { what: WHAT, field });
    let rotation = |wire: v1::RootRotation| {
        let digest = wire.digest.try_into();
        Ok(Arc::new(RootRotation {
            root_cert_pem: pem(wire.root_cert_pem, "new root certificate")?,
            root_key_pem: pem(wire.root_key_pem, "new root key")?,
            cross_signed_pem: pem(wire.cross_signed_pem, "cross-signed certificate")?,
            digest: digest.map_err(|_| DecodeError::Missing { what: WHAT, field: "new root's digest" })?,
            started_at: UnixMs(wire.started_at_ms),
        }))
    };
    Ok(Cluster {
        id: ClusterId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        spec: wire.spec.unwrap_or_default(),
        root_cert_pem: pem(wire.root_cert_pem, "root certificate")?,
        root_key_pem: pem(wire.root_key_pem, "root key")?,
        worker_token_secret: secret(wire.worker_token_secret, "worker token")?,
        manager_token_secret: secret(wire.manager_token_secret, "manager token")?,
        feature_level: wire.feature_level,
        last_raft_id: wire.last_raft_id,
        recovery_epoch: wire.recovery_epoch,
        unlock_key,
        data_key_epoch: wire.data_key_epoch,
        root_rotation: wire.root_rotation.map(rotation).transpose()?,
    })
}

pub fn node_to_wire(node: &Node) -> v1::Node {
    v1::Node {
        id: node.id.to_vec(),
        meta: meta_to_wire(node.meta),
        spec: Some(v1::NodeSpec::clone(&node.spec)),
        description: node.description.as_deref().cloned(),
        status: Some(node_status_to_wire(&node.status)),
        role: node.role.into(),
        manager: node.manager.as_ref().map(|manager| v1::ManagerStatus {
            raft_id: manager.raft_id,
            addr: manager.addr.clone(),
            ..v1::ManagerStatus::default()
        }),
        fabric_number: node.fabric_number.unwrap_or(0),
        ingress: node.ingress.map(addresses_to_wire),
    }
}

pub fn node_from_wire(wire: v1::Node) -> Result<Node, DecodeError> {
    const WHAT: &str = "node";
    Ok(Node {
        id: NodeId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        spec: Arc::new(wire.spec.unwrap_or_default()),
        description: wire.description.map(Arc::new),
        status: node_status_from_wire(wire.status.unwrap_or_default())?,
        role: known(wire.role, WHAT, "role")?,
        manager: wire.manager.map(|manager| ManagerStatus { raft_id: manager.raft_id, addr: manager.addr }),
        fabric_number: (wire.fabric_number != 0).then_some(wire.fabric_number),
        ingress: wire.ingress.map(|ingress| addresses_from_wire(&ingress, WHAT)).transpose()?,
    })
}

pub(super) fn node_status_to_wire(status: &NodeStatus) -> v1::NodeStatus {
    v1::NodeStatus {
        state: status.state.into(),
        message: status.message.clone(),
        addr: status.addr.clone(),
        since_ms: status.since.0,
    }
}

pub(super) fn node_status_from_wire(wire: v1::NodeStatus) -> Result<NodeStatus, DecodeError> {
    Ok(NodeStatus {
        state: known(wire.state, "node", "state")?,
        message: wire.message,
        addr: wire.addr,
        since: UnixMs(wire.since_ms),
    })
}

pub fn service_to_wire(service: &Service) -> v1::Service {
    v1::Service {
        id: service.id.to_vec(),
        meta: meta_to_wire(service.meta),
        spec: Some(v1::ServiceSpec::clone(&service.spec)),
        revision: service.revision,
        ports: service.ports.clone(),
        update: service.update.as_deref().cloned(),
        virtual_addresses: service.virtual_addresses.iter().copied().map(addresses_to_wire).collect(),
    }
}

pub fn service_from_wire(wire: v1::Service) -> Result<Service, DecodeError> {
    Ok(Service {
        id: ServiceId::from_wire(&wire.id).map_err(bad_id("service", "id"))?,
        meta: meta_from_wire(wire.meta),
        spec: Arc::new(wire.spec.ok_or(DecodeError::Missing { what: "service", field: "spec" })?),
        revision: wire.revision,
        ports: wire.ports,
        update: wire.update.map(Arc::new),
        virtual_addresses: all_addresses_from_wire(&wire.virtual_addresses, "service")?,
    })
}

pub fn revision_key_to_wire(key: RevisionKey) -> v1::RevisionKey {
    v1::RevisionKey { service_id: key.service.to_vec(), number: key.number }
}

pub(super) fn revision_key_from_wire(wire: &v1::RevisionKey) -> Result<RevisionKey, DecodeError> {
    let service = ServiceId::from_wire(&wire.service_id).map_err(bad_id("revision", "service_id"))?;
    Ok(RevisionKey { service, number: wire.number })
}

pub fn revision_to_wire(revision: &Revision) -> v1::Revision {
    v1::Revision {
        service_id: revision.key.service.to_vec(),
        number: revision.key.number,
        template: Some(v1::TaskTemplate::clone(&revision.template)),
        created_at_ms: revision.created_at.0,
        copied_from: revision.copied_from.unwrap_or(0),
        service_name: revision.service_name.to_string(),
        live: revision
            .live
            .as_ref()
            .map(|live| v1::LiveChange { from_revision: live.from_revision, signal: live.signal.clone() }),
    }
}

pub fn revision_from_wire(wire: v1::Revision) -> Result<Revision, DecodeError> {
    let key = v1::RevisionKey { service_id: wire.service_id, number: wire.number };
    Ok(Revision {
        key: revision_key_from_wire(&key)?,
        template: Arc::new(wire.template.ok_or(DecodeError::Missing { what: "revision", field: "template" })?),
        created_at: UnixMs(wire.created_at_ms),
        copied_from: (wire.copied_from != 0).then_some(wire.copied_from),
        service_name: wire.service_name.into(),
        live: wire.live.map(|live| LiveChange { from_revision: live.from_revision, signal: live.signal }),
    })
}

pub fn task_to_wire(task: &Task) -> v1::Task {
    v1::Task {
        id: task.id.to_vec(),
        meta: meta_to_wire(task.meta),
        service_id: task.revision.service.to_vec(),
        revision: task.revision.number,
        slot: match task.slot {
            Slot::Replica(number) => number,
            Slot::Node(_) => 0,
        },
        node_id: task.node.map(NodeId::to_vec).unwrap_or_default(),
        wanted: task.wanted.into(),
        status: Some(v1::TaskStatus::clone(&task.status)),
        ports: task.ports.clone(),
        start_at_ms: task.start_at.map_or(0, |at| at.0),
        replaces: task.replaces.map(TaskId::to_vec).unwrap_or_default(),
        policy_restart: task.policy_restart,
        networks: task.networks.iter().copied().map(addresses_to_wire).collect(),
    }
}

pub fn task_from_wire(wire: v1::Task) -> Result<Task, DecodeError> {
    const WHAT: &str = "task";
    let key = v1::RevisionKey { service_id: wire.service_id, number: wire.revision };
    let node = NodeId::from_wire_opt(&wire.node_id).map_err(bad_id(WHAT, "node_id"))?;
    let status = wire.status.unwrap_or_default();
    Ok(Task {
        id: TaskId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        revision: revision_key_from_wire(&key)?,
        slot: match wire.slot {
            // A global service's task: its node is its place.
            0 => Slot::Node(node.ok_or(DecodeError::Missing { what: WHAT, field: "slot or node_id" })?),
            number => Slot::Replica(number),
        },
        node,
        wanted: known(wire.wanted, WHAT, "wanted state")?,
        state: known(status.state, WHAT, "state")?,
        status: Arc::new(status),
        ports: wire.ports,
        start_at: UnixMs::from_wire_opt(wire.start_at_ms),
        replaces: TaskId::from_wire_opt(&wire.replaces).map_err(bad_id(WHAT, "replaces"))?,
        policy_restart: wire.policy_restart,
        networks: all_addresses_from_wire(&wire.networks, WHAT)?,
    })
}

pub fn network_to_wire(network: &Network) -> v1::Network {
    let subnet = |subnet: &Subnet| v1::Subnet {
        subnet: subnet.cidr.to_string(),
        gateway: subnet.gateway.to_string(),
        ip_range: subnet.range.map(|range| range.to_string()).unwrap_or_default(),
    };
    v1::Network {
        id: network.id.to_vec(),
        meta: meta_to_wire(network.meta),
        spec: Some(v1::NetworkSpec::clone(&network.spec)),
        subnets: network.subnets.iter().map(subnet).collect(),
        vni: network.vni.unwrap_or(0),
    }
}

pub fn network_from_wire(wire: v1::Network) -> Result<Network, DecodeError> {
    const WHAT: &str = "network";
    let missing = |field| DecodeError::Missing { what: WHAT, field };
    let subnet = |subnet: v1::Subnet| {
        let range = Some(&*subnet.ip_range).filter(|range| !range.is_empty());
        Ok(Subnet {
            cidr: subnet.subnet.parse().map_err(|_| missing("subnet"))?,
            gateway: subnet.gateway.parse().map_err(|_| missing("gateway"))?,
            range: range.map(|range| range.parse().map_err(|_| missing("range"))).transpose()?,
        })
    };
    Ok(Network {
        id: NetworkId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        spec: Arc::new(wire.spec.ok_or(missing("spec"))?),
        subnets: wire.subnets.into_iter().map(subnet).collect::<Result<_, DecodeError>>()?,
        vni: (wire.vni != 0).then_some(wire.vni),
    })
}

/// Addresses on one network, as messages carry them.
pub fn addresses_to_wire(addresses: NetworkAddresses) -> v1::NetworkAddresses {
    v1::NetworkAddresses {
        network_id: addresses.network.to_vec(),
        addresses: addresses.iter().map(address_to_wire).collect(),
    }
}

fn addresses_from_wire(wire: &v1::NetworkAddresses, what: &'static str) -> Result<NetworkAddresses, DecodeError> {
    let network = NetworkId::from_wire(&wire.network_id).map_err(bad_id(what, "network_id"))?;
    let mut addresses = NetworkAddresses::none(network);
    for bytes in &wire.addresses {
        addresses.set(address_from_wire(bytes).ok_or(DecodeError::Missing { what, field: "address" })?);
    }
    Ok(addresses)
}

fn all_addresses_from_wire(
    wire: &[v1::NetworkAddresses],
    what: &'static str,
) -> Result<Vec<NetworkAddresses>, DecodeError> {
    wire.iter().map(|one| addresses_from_wire(one, what)).collect()
}

pub fn image_name_to_wire(name: &ImageName) -> v1::ImageName {
    v1::ImageName {
        name: name.name.clone(),
        meta: meta_to_wire(name.meta),
        digest: name.digest.clone(),
        platforms: name.platforms.clone(),
    }
}

pub fn image_name_from_wire(wire: v1::ImageName) -> Result<ImageName, DecodeError> {
    if wire.name.is_empty() {
        return Err(DecodeError::Missing { what: "image name", field: "name" });
    }
    Ok(ImageName { name: wire.name, meta: meta_from_wire(wire.meta), digest: wire.digest, platforms: wire.platforms })
}

/// With its secret part: for the log, and for nodes with a task of its service.
pub fn credential_to_wire(credential: &Credential) -> v1::Credential {
    v1::Credential {
        id: credential.id.to_vec(),
        meta: meta_to_wire(credential.meta),
        service_id: credential.service.to_vec(),
        registry: credential.registry.clone(),
        auth: Some(credential.auth.clone()),
    }
}

pub fn credential_from_wire(wire: v1::Credential) -> Result<Credential, DecodeError> {
    const WHAT: &str = "credential";
    Ok(Credential {
        id: CredentialId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        service: ServiceId::from_wire(&wire.service_id).map_err(bad_id(WHAT, "service_id"))?,
        registry: wire.registry,
        auth: wire.auth.unwrap_or_default(),
    })
}

pub fn client_to_wire(client: &Client) -> v1::Client {
    v1::Client {
        id: client.id.to_vec(),
        meta: meta_to_wire(client.meta),
        name: client.name.clone(),
        role: client.role.into(),
        cert_not_after_ms: client.cert_not_after.0,
    }
}

pub fn client_from_wire(wire: v1::Client) -> Result<Client, DecodeError> {
    const WHAT: &str = "client";
    Ok(Client {
        id: ClientId::from_wire(&wire.id).map_err(bad_id(WHAT, "id"))?,
        meta: meta_from_wire(wire.meta),
        name: wire.name,
        // Never guessed: an unknown role must not become the first one.
        role: known(wire.role, WHAT, "role")?,
        cert_not_after: UnixMs(wire.cert_not_after_ms),
    })
}
