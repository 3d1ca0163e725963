//! A network's table: who is where on it, as the managers say. Pure: messages in, what changed out.
//!
//! Fed by `netd` from the agent; read by everything that makes kernel, name server and balancing follow it. Never keeps a
//! half: a table that comes in several messages counts when its last one is there, and a difference that does not fit
//! is refused, so that the agent asks for the whole.

mod change;
mod wire;

#[cfg(test)]
mod table_test;

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1;

pub use change::{RowChanges, TableChange};
pub use wire::MalformedTable;

/// What one network is, and who is on it, at one version. A clone shares everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Table {
    /// The managers' store version of its newest change. 0: nothing has come yet.
    pub version: u64,
    /// The network. `None` before the first whole table.
    pub network: Option<Arc<v1::Network>>,
    /// UDP port of plain overlays on all hosts.
    pub data_path_port: DataPathPort,
    pub endpoints: OrdMap<TaskId, Arc<Endpoint>>,
    pub services: OrdMap<ServiceId, Arc<Service>>,
    pub peers: OrdMap<NodeId, Arc<Peer>>,
}

impl Table {
    /// All of it as a change, for what begins with nothing.
    pub fn all(&self) -> TableChange {
        self.since(&Self::default())
    }

    /// What changed since an older one.
    pub fn since(&self, older: &Self) -> TableChange {
        change::between(older, self)
    }

    /// All of it as one message.
    pub fn message(&self, network: NetworkId) -> v1::NetworkTable {
        wire::whole(network, self)
    }

    /// A host's own row.
    pub fn peer(&self, node: Option<NodeId>) -> Option<&Peer> {
        self.peers.get(&node?).map(Arc::as_ref)
    }
}

/// UDP port of plain overlays: the managers' choice, or that of RFC 7348.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataPathPort(pub u16);

impl Default for DataPathPort {
    fn default() -> Self {
        Self(4789)
    }
}

/// What a task on the network may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EndpointState {
    /// It is reached by its address only.
    Quiet,
    /// Its host is down: its service's names and virtual addresses lead to it where no other task of the service serves.
    LastResort,
    /// They lead to it.
    Serving,
}

/// A task on the network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub node: NodeId,
    pub service: ServiceId,
    /// One of each family at most.
    pub addresses: Vec<IpAddr>,
    /// Names of this task alone.
    pub names: Vec<String>,
    pub state: EndpointState,
}

/// A service on the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name, then its aliases.
    pub names: Vec<String>,
    /// Empty with dnsrr.
    pub virtual_addresses: Vec<IpAddr>,
    /// Published by the routing mesh.
    pub ports: Vec<v1::PortSpec>,
}

/// A host on the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Peer {
    /// How it is reached from outside of the mesh.
    pub endpoint: v1::FabricEndpoint,
    /// Its number in the mesh; 0: it has none yet.
    pub fabric_number: u32,
    /// Its own addresses on this network; on the routing mesh's only.
    pub addresses: Vec<IpAddr>,
}

/// A table that follows the managers' messages.
#[derive(Debug, Default)]
pub struct FollowedTable {
    current: Table,
    /// Messages of a version that has not ended yet.
    pending: Option<Pending>,
}

#[derive(Debug)]
struct Pending {
    version: u64,
    /// What the table will be.
    table: Table,
}

/// Why a message was not taken.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum TableError {
    /// It is a difference to another version than the one that is here: the whole table is needed.
    #[error("a difference to version {applies_to} of network {network} does not fit version {have}")]
    Gap { network: NetworkId, applies_to: u64, have: u64 },
    /// It says what cannot be.
    #[error("the table of network {network} cannot be read")]
    Malformed {
        network: NetworkId,
        #[source]
        source: MalformedTable,
    },
}

impl FollowedTable {
    /// The newest version that is whole.
    pub fn current(&self) -> &Table {
        &self.current
    }

    /// Whether there are messages of a version that has not ended.
    pub fn is_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Takes one message. True where it ended a version; an old version changes nothing.
    ///
    /// # Errors
    /// [`TableError`]; the table then stays at its last whole version.
    pub fn take(&mut self, network: NetworkId, message: &v1::NetworkTable) -> Result<bool, TableError> {
        let next = self.table_for(network, message)?;
        let mut table = match next {
            Some(table) => table,
            None => return Ok(false),
        };
        if let Err(source) = wire::merge(&mut table, message) {
            self.pending = None;
            return Err(TableError::Malformed { network, source });
        }
        if !message.end {
            self.pending = Some(Pending { version: message.version, table });
            return Ok(false);
        }
        table.version = message.version;
        self.current = table;
        self.pending = None;
        Ok(true)
    }

    /// The table that the message goes on with; `None` where the message says nothing new.
    fn table_for(&mut self, network: NetworkId, message: &v1::NetworkTable) -> Result<Option<Table>, TableError> {
        // The first message of a whole table says what the network is: what came of the same version before, from a
        // manager that was lost in the middle, counts no more.
        let begins_anew = message.complete && message.network.is_some();
        if let Some(pending) = self.pending.take_if(|pending| !begins_anew && pending.version == message.version) {
            return Ok(Some(pending.table));
        }
        self.pending = None;
        if message.complete {
            return Ok(Some(Table::default()));
        }
        let have = self.current.version;
        if message.version <= have {
            return Ok(None);
        }
        if message.applies_to != have || have == 0 {
            return Err(TableError::Gap { network, applies_to: message.applies_to, have });
        }
        Ok(Some(self.current.clone()))
    }
}
