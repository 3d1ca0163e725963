//! Entries of the log: transactions, their groups and changes.

use std::sync::Arc;

use prost::Message;
use skep_proto::id::{ClientId, ConfigId, CredentialId, NetworkId, NodeId, RequestId, SecretId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1;
use skep_proto::v1::change::Change as Kind;

use super::error::DecodeError;
use super::objects::{self, bad_id, known};
use super::parcels;
use crate::change::{Change, Expect, Group, NodeObserved, Op, TaskObserved, Transaction};
use crate::object::ParcelId;

/// The format of entries that this build writes, and the highest that it reads.
const FORMAT: u32 = 1;

/// Packs encoded transactions into an entry without encoding them twice.
#[derive(Clone, Debug)]
pub struct EntryWriter {
    bytes: Vec<u8>,
}

impl Default for EntryWriter {
    /// An entry without transactions.
    fn default() -> Self {
        let head = v1::Entry { format: FORMAT, transactions: Vec::new() };
        Self { bytes: head.encode_to_vec() }
    }
}

impl EntryWriter {
    /// Number of `transactions` in `v1::Entry`.
    const TRANSACTIONS: u32 = 2;

    /// Adds a transaction in its wire form (`transaction_to_wire(…).encode_to_vec()`).
    pub fn push(&mut self, transaction: &[u8]) {
        let kind = prost::encoding::WireType::LengthDelimited;
        prost::encoding::encode_key(Self::TRANSACTIONS, kind, &mut self.bytes);
        prost::encoding::encode_varint(transaction.len() as u64, &mut self.bytes);
        self.bytes.extend_from_slice(transaction);
    }

    /// Bytes so far.
    pub fn size_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The entry.
    pub fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// An entry with these transactions.
pub fn encode_entry(transactions: &[Transaction]) -> Vec<u8> {
    let mut entry = EntryWriter::default();
    for transaction in transactions {
        entry.push(&transaction_to_wire(transaction).encode_to_vec());
    }
    entry.finish()
}

/// The transactions of an entry, in order.
pub fn decode_entry(bytes: &[u8]) -> Result<Vec<Transaction>, DecodeError> {
    let entry = v1::Entry::decode(bytes).map_err(|source| DecodeError::Malformed { what: "entry", source })?;
    if entry.format != FORMAT {
        return Err(DecodeError::Format { what: "entry", found: entry.format, known: FORMAT });
    }
    entry.transactions.into_iter().map(transaction_from_wire).collect()
}

/// The wire form of a transaction.
pub fn transaction_to_wire(transaction: &Transaction) -> v1::Transaction {
    v1::Transaction {
        request_id: transaction.request.map(RequestId::to_vec).unwrap_or_default(),
        at_ms: transaction.at.0,
        groups: transaction.groups.iter().map(group_to_wire).collect(),
        object_id: transaction.object_id.clone(),
    }
}

/// Bytes of a transaction in an entry.
pub fn transaction_size(transaction: &Transaction) -> usize {
    transaction_to_wire(transaction).encoded_len()
}

fn transaction_from_wire(wire: v1::Transaction) -> Result<Transaction, DecodeError> {
    Ok(Transaction {
        request: RequestId::from_wire_opt(&wire.request_id).map_err(bad_id("transaction", "request_id"))?,
        at: UnixMs(wire.at_ms),
        groups: wire.groups.into_iter().map(group_from_wire).collect::<Result<_, _>>()?,
        object_id: wire.object_id,
    })
}

/// The wire form of a group.
pub(crate) fn group_to_wire(group: &Group) -> v1::Group {
    v1::Group { changes: group.0.iter().map(change_to_wire).collect() }
}

fn group_from_wire(wire: v1::Group) -> Result<Group, DecodeError> {
    wire.changes.into_iter().map(change_from_wire).collect::<Result<_, _>>().map(Group)
}

fn change_to_wire(change: &Change) -> v1::Change {
    let is_put = !matches!(
        change.op,
        Op::RemoveNode(_)
            | Op::RemoveService(_)
            | Op::RemoveRevision(_)
            | Op::RemoveTask(_)
            | Op::RemoveImageName(_)
            | Op::RemoveCredential(_)
            | Op::RemoveNetwork(_)
            | Op::RemoveParcel(_)
            | Op::RemovePayload(_)
            | Op::RemoveClient(_)
            | Op::ObserveTask(_)
            | Op::ObserveNode(_)
    );
    v1::Change {
        expect_version: match change.expect {
            Expect::Version(version) => version,
            Expect::Absent | Expect::Any => 0,
        },
        unconditional: is_put && change.expect == Expect::Any,
        change: Some(op_to_wire(&change.op)),
    }
}

fn op_to_wire(op: &Op) -> Kind {
    match op {
        Op::PutCluster(cluster) => Kind::PutCluster(objects::cluster_to_wire(cluster)),
        Op::PutNode(node) => Kind::PutNode(objects::node_to_wire(node)),
        Op::PutService(service) => Kind::PutService(objects::service_to_wire(service)),
        Op::PutRevision(revision) => Kind::PutRevision(objects::revision_to_wire(revision)),
        Op::PutTask(task) => Kind::PutTask(objects::task_to_wire(task)),
        Op::PutImageName(name) => Kind::PutImageName(objects::image_name_to_wire(name)),
        Op::PutCredential(credential) => Kind::PutCredential(objects::credential_to_wire(credential)),
        Op::PutNetwork(network) => Kind::PutNetwork(objects::network_to_wire(network)),
        Op::PutParcel(parcel) => match parcel.id {
            ParcelId::Secret(id) => Kind::PutSecret(parcels::secret_to_wire(id, parcel)),
            ParcelId::Config(id) => Kind::PutConfig(parcels::config_to_wire(id, parcel)),
        },
        Op::PutPayload(payload) => Kind::PutPayload(parcels::payload_to_wire(payload)),
        Op::PutClient(client) => Kind::PutClient(objects::client_to_wire(client)),
        Op::RemoveNode(id) => Kind::RemoveNode(id.to_vec()),
        Op::RemoveService(id) => Kind::RemoveService(id.to_vec()),
        Op::RemoveRevision(key) => Kind::RemoveRevision(objects::revision_key_to_wire(*key)),
        Op::RemoveTask(id) => Kind::RemoveTask(id.to_vec()),
        Op::RemoveImageName(name) => Kind::RemoveImageName(name.clone()),
        Op::RemoveCredential(id) => Kind::RemoveCredential(id.to_vec()),
        Op::RemoveNetwork(id) => Kind::RemoveNetwork(id.to_vec()),
        Op::RemoveParcel(ParcelId::Secret(id)) => Kind::RemoveSecret(id.to_vec()),
        Op::RemoveParcel(ParcelId::Config(id)) => Kind::RemoveConfig(id.to_vec()),
        Op::RemovePayload(key) => Kind::RemovePayload(parcels::payload_key_to_wire(*key)),
        Op::RemoveClient(id) => Kind::RemoveClient(id.to_vec()),
        Op::ObserveTask(report) => Kind::ObserveTask(v1::TaskObserved {
            task_id: report.task.to_vec(),
            node_id: report.node.to_vec(),
            status: Some(v1::TaskStatus::clone(&report.status)),
        }),
        Op::ObserveNode(report) => Kind::ObserveNode(v1::NodeObserved {
            node_id: report.node.map(NodeId::to_vec).unwrap_or_default(),
            description: report.description.as_deref().cloned(),
            status: report.status.as_ref().map(objects::node_status_to_wire),
            role: report.role.unwrap_or_default().into(),
            has_role: report.role.is_some(),
        }),
    }
}

fn change_from_wire(wire: v1::Change) -> Result<Change, DecodeError> {
    let kind = wire.change.ok_or(DecodeError::UnknownKind { what: "change" })?;
    let put = match (wire.unconditional, wire.expect_version) {
        (true, _) => Expect::Any,
        (false, 0) => Expect::Absent,
        (false, version) => Expect::Version(version),
    };
    let removal = match wire.expect_version {
        0 => Expect::Any,
        version => Expect::Version(version),
    };
    let id = |what| bad_id(what, "id");
    let (expect, op) = match kind {
        Kind::PutCluster(cluster) => (put, Op::PutCluster(objects::cluster_from_wire(cluster)?)),
        Kind::PutNode(node) => (put, Op::PutNode(objects::node_from_wire(node)?)),
        Kind::PutService(service) => (put, Op::PutService(objects::service_from_wire(service)?)),
        Kind::PutRevision(revision) => (put, Op::PutRevision(objects::revision_from_wire(revision)?)),
        Kind::PutTask(task) => (put, Op::PutTask(objects::task_from_wire(task)?)),
        Kind::PutImageName(name) => (put, Op::PutImageName(objects::image_name_from_wire(name)?)),
        Kind::PutCredential(credential) => (put, Op::PutCredential(objects::credential_from_wire(credential)?)),
        Kind::PutNetwork(network) => (put, Op::PutNetwork(objects::network_from_wire(network)?)),
        Kind::PutSecret(secret) => (put, Op::PutParcel(parcels::secret_from_wire(secret)?)),
        Kind::PutConfig(config) => (put, Op::PutParcel(parcels::config_from_wire(config)?)),
        // They never change: what is expected of them is nothing.
        Kind::PutPayload(payload) => (put, Op::PutPayload(parcels::payload_from_wire(payload)?)),
        Kind::PutClient(client) => (put, Op::PutClient(objects::client_from_wire(client)?)),
        Kind::RemoveNode(bytes) => (removal, Op::RemoveNode(NodeId::from_wire(&bytes).map_err(id("node"))?)),
        Kind::RemoveService(bytes) => {
            (removal, Op::RemoveService(ServiceId::from_wire(&bytes).map_err(id("service"))?))
        }
        Kind::RemoveRevision(key) => (removal, Op::RemoveRevision(objects::revision_key_from_wire(&key)?)),
        Kind::RemoveTask(bytes) => (removal, Op::RemoveTask(TaskId::from_wire(&bytes).map_err(id("task"))?)),
        Kind::RemoveImageName(name) => (removal, Op::RemoveImageName(name)),
        Kind::RemoveCredential(bytes) => {
            (removal, Op::RemoveCredential(CredentialId::from_wire(&bytes).map_err(id("credential"))?))
        }
        Kind::RemoveNetwork(bytes) => {
            (removal, Op::RemoveNetwork(NetworkId::from_wire(&bytes).map_err(id("network"))?))
        }
        Kind::RemoveSecret(bytes) => {
            let secret = SecretId::from_wire(&bytes).map_err(id("secret"))?;
            (removal, Op::RemoveParcel(ParcelId::Secret(secret)))
        }
        Kind::RemoveConfig(bytes) => {
            let config = ConfigId::from_wire(&bytes).map_err(id("config"))?;
            (removal, Op::RemoveParcel(ParcelId::Config(config)))
        }
        Kind::RemovePayload(key) => (removal, Op::RemovePayload(parcels::payload_key_from_wire(Some(&key))?)),
        Kind::RemoveClient(bytes) => (removal, Op::RemoveClient(ClientId::from_wire(&bytes).map_err(id("client"))?)),
        Kind::ObserveTask(report) => (Expect::Any, Op::ObserveTask(task_observed(report)?)),
        Kind::ObserveNode(report) => (Expect::Any, Op::ObserveNode(node_observed(report)?)),
    };
    Ok(Change { expect, op })
}

fn task_observed(wire: v1::TaskObserved) -> Result<TaskObserved, DecodeError> {
    const WHAT: &str = "task report";
    let status = wire.status.ok_or(DecodeError::Missing { what: WHAT, field: "status" })?;
    known::<v1::TaskState>(status.state, WHAT, "state")?;
    Ok(TaskObserved {
        task: TaskId::from_wire(&wire.task_id).map_err(bad_id(WHAT, "task_id"))?,
        node: NodeId::from_wire(&wire.node_id).map_err(bad_id(WHAT, "node_id"))?,
        status: Arc::new(status),
    })
}

fn node_observed(wire: v1::NodeObserved) -> Result<NodeObserved, DecodeError> {
    const WHAT: &str = "node report";
    let role = known(wire.role, WHAT, "role")?;
    Ok(NodeObserved {
        node: NodeId::from_wire_opt(&wire.node_id).map_err(bad_id(WHAT, "node_id"))?,
        description: wire.description.map(Arc::new),
        status: wire.status.map(objects::node_status_from_wire).transpose()?,
        role: wire.has_role.then_some(role),
    })
}
