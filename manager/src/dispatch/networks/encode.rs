//! Rows of a table as messages, cut to size: a long table comes in several messages of one version. Pure.

use bytes::Bytes;
use prost::Message as _;
use skep_core::codec;
use skep_core::network::table::{Row, RowKey};
use skep_core::object::Network;
use skep_proto::id::NetworkId;
use skep_proto::v1::NetworkTable;

use crate::dispatch::limits::TABLE_BYTES;

/// What a network is.
#[derive(Clone, Copy)]
pub(super) struct Definition<'a> {
    pub(super) network: &'a Network,
    /// `ClusterSpec.data_path_port`.
    pub(super) data_path_port: u32,
}

impl Definition<'_> {
    fn put(self, page: &mut NetworkTable) {
        page.network = Some(codec::network_to_wire(self.network));
        page.data_path_port = self.data_path_port;
    }
}

/// What a difference is about.
pub(super) struct Difference<'a> {
    pub(super) id: NetworkId,
    pub(super) applies_to: u64,
    pub(super) version: u64,
    /// Where it changed.
    pub(super) network: Option<Definition<'a>>,
}

/// The whole table.
pub(super) fn whole<'a>(definition: Definition<'_>, version: u64, rows: impl Iterator<Item = &'a Row>) -> Vec<Bytes> {
    let network_id = definition.network.id.to_vec();
    let head = NetworkTable { network_id, complete: true, version, ..NetworkTable::default() };
    let mut pages = Pages::new(head);
    definition.put(&mut pages.page);
    rows.for_each(|row| pages.put(row));
    pages.end()
}

/// Rows that changed; `None`: one that is gone.
pub(super) fn difference<'a>(
    difference: &Difference<'_>,
    rows: impl Iterator<Item = (RowKey, Option<&'a Row>)>,
) -> Vec<Bytes> {
    let Difference { id, applies_to, version, network } = *difference;
    let head = NetworkTable { network_id: id.to_vec(), applies_to, version, ..NetworkTable::default() };
    let mut pages = Pages::new(head);
    if let Some(definition) = network {
        definition.put(&mut pages.page);
    }
    for (key, row) in rows {
        match row {
            Some(row) => pages.put(row),
            None => pages.remove(key),
        }
    }
    pages.end()
}

/// The node needs the table no more.
pub(super) fn dropped(network: NetworkId) -> Bytes {
    NetworkTable { network_id: network.to_vec(), dropped: true, ..NetworkTable::default() }.encode_to_vec().into()
}

/// Messages of one version.
struct Pages {
    /// What each of them says.
    head: NetworkTable,
    page: NetworkTable,
    bytes: usize,
    done: Vec<Bytes>,
}

impl Pages {
    fn new(head: NetworkTable) -> Self {
        Self { page: head.clone(), head, bytes: 0, done: Vec::new() }
    }

    fn put(&mut self, row: &Row) {
        let bytes = match row {
            Row::Endpoint(row) => row.encoded_len(),
            Row::Service(row) => row.encoded_len(),
            Row::Peer(row) => row.encoded_len(),
        };
        self.make_room(bytes);
        match row {
            Row::Endpoint(row) => self.page.put_endpoints.push(row.clone()),
            Row::Service(row) => self.page.put_services.push(row.clone()),
            Row::Peer(row) => self.page.put_peers.push(row.clone()),
        }
    }

    fn remove(&mut self, key: RowKey) {
        self.make_room(16);
        match key {
            RowKey::Endpoint(id) => self.page.remove_endpoints.push(id.to_vec()),
            RowKey::Service(id) => self.page.remove_services.push(id.to_vec()),
            RowKey::Peer(id) => self.page.remove_peers.push(id.to_vec()),
        }
    }

    fn make_room(&mut self, bytes: usize) {
        // Field numbers and lengths.
        let bytes = bytes + 4;
        if self.bytes > 0 && self.bytes + bytes > TABLE_BYTES {
            let page = std::mem::replace(&mut self.page, self.head.clone());
            self.done.push(page.encode_to_vec().into());
            self.bytes = 0;
        }
        self.bytes += bytes;
    }

    fn end(mut self) -> Vec<Bytes> {
        self.page.end = true;
        self.done.push(self.page.encode_to_vec().into());
        self.done
    }
}
