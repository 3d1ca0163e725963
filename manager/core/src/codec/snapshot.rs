//! Snapshots: a head, then one record for each object, length-delimited, in the order of the tables, so that equal
//! states are equal bytes. Streamed: neither side ever holds the whole. Damage is the Raft layer's to detect (it
//! encrypts and authenticates); here the shape is checked.

use std::io::{self, BufReader, Read, Write};
use std::sync::Arc;

use prost::Message;
use sha2::{Digest, Sha256};
use skep_proto::id::{NodeId, RequestId};
use skep_proto::time::UnixMs;
use skep_proto::v1;
use skep_proto::v1::snapshot_record::Record;

use super::error::{DecodeError, SnapshotError};
use super::objects::{self, bad_id};
use super::parcels;
use crate::object::ParcelId;
use crate::store::{Object, RequestRecord, State};

/// The format of snapshots that this build writes, and the highest that it reads.
const FORMAT: u32 = 1;
/// No record is larger: a transaction has 1.5 MiB at most, and an object comes in one.
const MAX_RECORD_BYTES: usize = 4 << 20;

/// Writes the state. Errors are those of `to`.
pub fn write_snapshot(state: &State, to: &mut dyn Write) -> io::Result<()> {
    let records = state.object_count() + state.requests().count() + state.denied().count();
    let head = v1::SnapshotHeader { format: FORMAT, version: state.version(), records: records as u64 };
    let mut buffer = Vec::new();
    write_delimited(&head, &mut buffer, to)?;
    for object in state.objects() {
        write_delimited(&v1::SnapshotRecord { record: Some(object_to_record(&object)) }, &mut buffer, to)?;
    }
    for request in state.requests() {
        let record = Record::Request(v1::RequestRecord {
            request_id: request.request.to_vec(),
            at_ms: request.at.0,
            version: request.version,
            object_id: request.object_id.clone(),
        });
        write_delimited(&v1::SnapshotRecord { record: Some(record) }, &mut buffer, to)?;
    }
    for (node, until) in state.denied() {
        let record = Record::Denied(v1::DeniedNode { node_id: node.to_vec(), until_ms: until.0 });
        write_delimited(&v1::SnapshotRecord { record: Some(record) }, &mut buffer, to)?;
    }
    Ok(())
}

/// Reads a state that `write_snapshot` wrote, to the end of `from`.
pub fn read_snapshot(from: &mut dyn Read) -> Result<State, SnapshotError> {
    let from = &mut BufReader::new(from);
    let mut buffer = Vec::new();
    if !read_delimited(from, &mut buffer, 0)? {
        return Err(SnapshotError::Cut { found: 0, expected: 1 });
    }
    let head: v1::SnapshotHeader = decode(&buffer, 0)?;
    if head.format != FORMAT {
        let source = DecodeError::Format { what: "snapshot", found: head.format, known: FORMAT };
        return Err(SnapshotError::Record { record: 0, source });
    }
    let mut state = State::default();
    for number in 1..=head.records {
        if !read_delimited(from, &mut buffer, number)? {
            return Err(SnapshotError::Cut { found: number - 1, expected: head.records });
        }
        let record: v1::SnapshotRecord = decode(&buffer, number)?;
        let record = record.record.ok_or(DecodeError::UnknownKind { what: "snapshot" });
        record
            .and_then(|record| restore(&mut state, record))
            .map_err(|source| SnapshotError::Record { record: number, source })?;
    }
    if read_delimited(from, &mut buffer, head.records + 1)? {
        return Err(SnapshotError::Longer { expected: head.records });
    }
    state.set_version(head.version);
    Ok(state)
}

impl State {
    /// SHA-256 of the snapshot: equal for equal states, on every manager. O(n).
    pub fn digest(&self) -> [u8; 32] {
        let mut hashing = Hashing(Sha256::new());
        write_snapshot(self, &mut hashing).expect("hashing does no I/O that could fail");
        hashing.0.finalize().into()
    }
}

/// Hashes what is written to it.
struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn object_to_record(object: &Object) -> Record {
    match object {
        Object::Cluster(cluster) => Record::Cluster(objects::cluster_to_wire(cluster)),
        Object::Node(node) => Record::Node(objects::node_to_wire(node)),
        Object::Service(service) => Record::Service(objects::service_to_wire(service)),
        Object::Revision(revision) => Record::Revision(objects::revision_to_wire(revision)),
        Object::Task(task) => Record::Task(objects::task_to_wire(task)),
        Object::ImageName(name) => Record::ImageName(objects::image_name_to_wire(name)),
        Object::Network(network) => Record::Network(objects::network_to_wire(network)),
        Object::Credential(credential) => Record::Credential(objects::credential_to_wire(credential)),
        Object::Parcel(parcel) => match parcel.id {
            ParcelId::Secret(id) => Record::Secret(parcels::secret_to_wire(id, parcel)),
            ParcelId::Config(id) => Record::Config(parcels::config_to_wire(id, parcel)),
        },
        Object::Payload(payload) => Record::Payload(parcels::payload_to_wire(payload)),
        Object::Client(client) => Record::Client(objects::client_to_wire(client)),
    }
}

fn restore(state: &mut State, record: Record) -> Result<(), DecodeError> {
    let object = match record {
        Record::Cluster(cluster) => Object::Cluster(Arc::new(objects::cluster_from_wire(cluster)?)),
        Record::Node(node) => Object::Node(Arc::new(objects::node_from_wire(node)?)),
        Record::Service(service) => Object::Service(Arc::new(objects::service_from_wire(service)?)),
        Record::Revision(revision) => Object::Revision(Arc::new(objects::revision_from_wire(revision)?)),
        Record::Task(task) => Object::Task(Arc::new(objects::task_from_wire(task)?)),
        Record::ImageName(name) => Object::ImageName(Arc::new(objects::image_name_from_wire(name)?)),
        Record::Credential(credential) => Object::Credential(Arc::new(objects::credential_from_wire(credential)?)),
        Record::Network(network) => Object::Network(Arc::new(objects::network_from_wire(network)?)),
        Record::Secret(secret) => Object::Parcel(Arc::new(parcels::secret_from_wire(secret)?)),
        Record::Config(config) => Object::Parcel(Arc::new(parcels::config_from_wire(config)?)),
        Record::Payload(payload) => Object::Payload(Arc::new(parcels::payload_from_wire(payload)?)),
        Record::Client(client) => Object::Client(Arc::new(objects::client_from_wire(client)?)),
        Record::Request(request) => {
            state.put_request(RequestRecord {
                request: RequestId::from_wire(&request.request_id).map_err(bad_id("answer", "request_id"))?,
                at: UnixMs(request.at_ms),
                version: request.version,
                object_id: request.object_id,
            });
            return Ok(());
        }
        Record::Denied(denied) => {
            let node = NodeId::from_wire(&denied.node_id).map_err(bad_id("removed node", "node_id"))?;
            state.deny(node, UnixMs(denied.until_ms));
            return Ok(());
        }
    };
    state.put(object);
    Ok(())
}

fn write_delimited(message: &impl Message, buffer: &mut Vec<u8>, to: &mut dyn Write) -> io::Result<()> {
    buffer.clear();
    message.encode_length_delimited(buffer).expect("a Vec grows");
    to.write_all(buffer)
}

/// Reads one delimited record into `buffer`; false at the end of the input.
fn read_delimited(from: &mut dyn Read, buffer: &mut Vec<u8>, number: u64) -> Result<bool, SnapshotError> {
    let Some(bytes) = read_length(from).map_err(SnapshotError::Read)? else {
        return Ok(false);
    };
    let length = usize::try_from(bytes).ok().filter(|length| *length <= MAX_RECORD_BYTES);
    let Some(length) = length else {
        return Err(SnapshotError::RecordTooLarge { record: number, bytes, limit: MAX_RECORD_BYTES });
    };
    buffer.resize(length, 0);
    from.read_exact(buffer).map_err(SnapshotError::Read)?;
    Ok(true)
}

/// A varint; `None` at the end of the input before its first byte.
fn read_length(from: &mut dyn Read) -> io::Result<Option<u64>> {
    let mut length = 0u64;
    for shift in (0..64).step_by(7) {
        let mut byte = [0];
        match from.read_exact(&mut byte) {
            Err(error) if shift == 0 && error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        length |= u64::from(byte[0] & 0x7f) << shift;
        if byte[0] < 0x80 {
            return Ok(Some(length));
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "a record's length has more than ten bytes"))
}

fn decode<M: Message + Default>(bytes: &[u8], record: u64) -> Result<M, SnapshotError> {
    M::decode(bytes)
        .map_err(|source| SnapshotError::Record { record, source: DecodeError::Malformed { what: "record", source } })
}
