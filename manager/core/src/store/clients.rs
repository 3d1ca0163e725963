//! Clients, by id and by name.

use std::sync::Arc;

use imbl::OrdMap;
use skep_proto::id::ClientId;

use super::State;
use crate::object::Client;

/// Clients with their index.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct ClientTable {
    by_id: OrdMap<ClientId, Arc<Client>>,
    by_name: OrdMap<String, ClientId>,
}

impl ClientTable {
    pub(super) fn put(&mut self, client: Arc<Client>) -> Option<Arc<Client>> {
        let old = self.remove(client.id);
        self.by_name.insert(client.name.clone(), client.id);
        self.by_id.insert(client.id, client);
        old
    }

    pub(super) fn remove(&mut self, id: ClientId) -> Option<Arc<Client>> {
        let old = self.by_id.remove(&id)?;
        self.by_name.remove(&old.name);
        Some(old)
    }
}

impl State {
    /// The client of that id.
    pub fn client(&self, id: ClientId) -> Option<&Arc<Client>> {
        self.clients.by_id.get(&id)
    }

    /// All clients, by id.
    pub fn clients(&self) -> impl DoubleEndedIterator<Item = &Arc<Client>> {
        self.clients.by_id.values()
    }

    /// How many clients there are.
    pub fn client_count(&self) -> usize {
        self.clients.by_id.len()
    }

    /// The client of that exact name.
    pub fn client_by_name(&self, name: &str) -> Option<&Arc<Client>> {
        self.client(*self.clients.by_name.get(name)?)
    }

    /// Clients whose ids lie in the range, by id.
    pub(super) fn clients_between(&self, low: ClientId, high: ClientId) -> impl Iterator<Item = &Arc<Client>> {
        self.clients.by_id.range(low..=high).map(|(_, client)| client)
    }
}
