//! Writes one transaction's groups into the state. Each change is checked before it is stored; a group that fails is
//! taken back by storing what was there before, in reverse.

use skep_proto::id::NodeId;
use skep_proto::time::UnixMs;

use super::checks::{self, name_of};
use super::refused::Refused;
use super::{networks, observe, parcels};
use crate::change::{Change, Expect, Group, Op};
use crate::event::Event;
use crate::object::{Client, Meta, Node, Parcel, Payload, Revision, Service, Task};
use crate::store::{Holder, Object, ObjectKey, State};

/// A transaction on its way into the state.
pub(super) struct Writer<'a> {
    state: &'a mut State,
    version: u64,
    at: UnixMs,
    events: Vec<Event>,
    /// Nodes that the current group removed.
    denied: Vec<NodeId>,
}

impl<'a> Writer<'a> {
    /// `version` is what the store will have afterwards.
    pub(super) fn new(state: &'a mut State, version: u64, at: UnixMs) -> Self {
        Self { state, version, at, events: Vec::new(), denied: Vec::new() }
    }

    /// What changed.
    pub(super) fn finish(self) -> Vec<Event> {
        self.events
    }

    /// Applies one group, wholly or not at all.
    pub(super) fn group(&mut self, group: &Group) -> Result<(), Refused> {
        let start = self.events.len();
        self.denied.clear();
        let mut done = group.0.iter().try_for_each(|change| self.change(change));
        if done.is_ok() {
            done = checks::references(self.state, &self.events[start..]);
        }
        if done.is_err() {
            self.take_back(start);
        }
        done
    }

    /// Undoes all events from `start` on.
    fn take_back(&mut self, start: usize) {
        for event in self.events.drain(start..).rev() {
            match event.before {
                Some(object) => self.state.put(object),
                None => self.state.remove(&event.key),
            };
        }
        for node in self.denied.drain(..) {
            self.state.allow(node);
        }
    }

    fn change(&mut self, change: &Change) -> Result<(), Refused> {
        checks::well_formed(&change.op)?;
        let expect = change.expect;
        match &change.op {
            Op::PutCluster(cluster) => {
                if self.state.cluster().is_some_and(|stored| stored.id != cluster.id) {
                    return Err(Refused::OtherCluster);
                }
                self.put(expect, cluster.clone(), |cluster, meta| cluster.meta = meta)
            }
            Op::PutNode(node) => self.put_node(expect, node),
            Op::PutService(service) => self.put_service(expect, service),
            Op::PutRevision(revision) => self.put_revision(expect, revision),
            Op::PutTask(task) => self.put_task(expect, task),
            Op::PutImageName(name) => self.put(expect, name.clone(), |name, meta| name.meta = meta),
            Op::PutCredential(credential) => {
                let stored = self.state.credential(credential.id);
                if stored.is_some_and(|stored| stored.service != credential.service) {
                    let object = ObjectKey::Credential(credential.id).to_string();
                    return Err(Refused::Fixed { object, part: "service" });
                }
                self.put(expect, credential.clone(), |credential, meta| credential.meta = meta)
            }
            Op::PutNetwork(network) => {
                if self.state.network(network.id).is_some() {
                    self.expect(expect, &ObjectKey::Network(network.id))?;
                }
                networks::network_fits(self.state, network)?;
                self.put(expect, network.clone(), |network, meta| network.meta = meta)
            }
            Op::PutParcel(parcel) => self.put_parcel(expect, parcel),
            Op::PutPayload(payload) => self.put_payload(expect, payload),
            Op::PutClient(client) => self.put_client(expect, client),
            Op::RemoveNode(id) => self.remove_node(expect, *id),
            Op::RemoveService(id) => self.remove(expect, ObjectKey::Service(*id)),
            Op::RemoveRevision(key) => {
                let tasks = self.state.revision_in_use(*key);
                if tasks > 0 {
                    let object = ObjectKey::Revision(*key).to_string();
                    return Err(Refused::InUse { object, by: format!("{tasks} tasks") });
                }
                self.remove(expect, ObjectKey::Revision(*key))
            }
            Op::RemoveTask(id) => {
                checks::may_forget(self.state, *id)?;
                self.remove(expect, ObjectKey::Task(*id))
            }
            Op::RemoveImageName(name) => self.remove(expect, ObjectKey::ImageName(name.clone())),
            Op::RemoveCredential(id) => self.remove(expect, ObjectKey::Credential(*id)),
            Op::RemoveNetwork(id) => self.remove(expect, ObjectKey::Network(*id)),
            Op::RemoveParcel(id) => self.remove(expect, ObjectKey::Parcel(*id)),
            Op::RemovePayload(key) => self.remove(expect, ObjectKey::Payload(*key)),
            Op::RemoveClient(id) => self.remove(expect, ObjectKey::Client(*id)),
            Op::ObserveTask(report) => {
                if let Some(task) = observe::task(self.state, report) {
                    self.store(task);
                }
                Ok(())
            }
            Op::ObserveNode(report) => {
                if let Some(node) = observe::node(self.state, report) {
                    self.store(node);
                }
                Ok(())
            }
        }
    }

    /// An existing node keeps its observed parts: they come by `ObserveNode` only.
    fn put_node(&mut self, expect: Expect, node: &Node) -> Result<(), Refused> {
        if self.state.is_denied(node.id) {
            return Err(Refused::NodeRemoved { node: node.id });
        }
        let mut node = node.clone();
        if let Some(stored) = self.state.node(node.id) {
            node.description.clone_from(&stored.description);
            node.status.clone_from(&stored.status);
            node.role = stored.role;
        }
        networks::node_claims(self.state, &node)?;
        self.put(expect, node, |node, meta| node.meta = meta)
    }

    fn put_service(&mut self, expect: Expect, service: &Service) -> Result<(), Refused> {
        let name = &service.spec.name;
        if let Some(holder) = self.state.service_by_name(name).map(|holder| holder.id)
            && holder != service.id
        {
            return Err(Refused::NameTaken { name: name.clone(), holder });
        }
        if let Some(stored) = self.state.service(service.id)
            && stored.revision > service.revision
        {
            return Err(Refused::Backwards {
                object: format!("service {name}"),
                part: "revision",
                from: stored.revision.to_string(),
                to: service.revision.to_string(),
            });
        }
        networks::service_claims(self.state, service)?;
        self.put(expect, service.clone(), |service, meta| service.meta = meta)
    }

    /// A revision is made once, with a higher number than every one before it.
    fn put_revision(&mut self, expect: Expect, revision: &Revision) -> Result<(), Refused> {
        let key = ObjectKey::Revision(revision.key);
        if self.state.revision(revision.key).is_some() {
            return Err(Refused::Exists { object: key.to_string() });
        }
        if matches!(expect, Expect::Version(_)) {
            return Err(Refused::Gone { object: key.to_string() });
        }
        let newest = self.state.revisions_of(revision.key.service).next_back().map(|newest| newest.key.number);
        if let Some(newest) = newest.filter(|newest| *newest >= revision.key.number) {
            return Err(Refused::Backwards {
                object: ObjectKey::Service(revision.key.service).to_string(),
                part: "revision",
                from: newest.to_string(),
                to: revision.key.number.to_string(),
            });
        }
        self.store(Revision { created_at: self.at, ..revision.clone() });
        Ok(())
    }

    fn put_parcel(&mut self, expect: Expect, parcel: &Parcel) -> Result<(), Refused> {
        if self.state.parcel(parcel.id).is_some() {
            // A stale write is told so first: what else is wrong with it follows from that.
            self.expect(expect, &ObjectKey::Parcel(parcel.id))?;
        }
        parcels::parcel_fits(self.state, parcel)?;
        let mut parcel = parcel.clone();
        parcels::date(self.state, &mut parcel, self.at);
        self.put(expect, parcel, |parcel, meta| parcel.meta = meta)
    }

    /// A payload is made once and never changes.
    fn put_payload(&mut self, expect: Expect, payload: &Payload) -> Result<(), Refused> {
        let key = ObjectKey::Payload(payload.key);
        if self.state.payload(payload.key).is_some() {
            return Err(Refused::Exists { object: key.to_string() });
        }
        if matches!(expect, Expect::Version(_)) {
            return Err(Refused::Gone { object: key.to_string() });
        }
        self.store(payload.clone());
        Ok(())
    }

    fn put_client(&mut self, expect: Expect, client: &Client) -> Result<(), Refused> {
        if let Some(holder) = self.state.client_by_name(&client.name).filter(|holder| holder.id != client.id) {
            let (what, holder) = (format!("name {}", client.name), ObjectKey::Client(holder.id).to_string());
            return Err(Refused::Taken { what, holder });
        }
        self.put(expect, client.clone(), |client, meta| client.meta = meta)
    }

    fn put_task(&mut self, expect: Expect, task: &Task) -> Result<(), Refused> {
        let mut task = task.clone();
        if let Some(stored) = self.state.task(task.id) {
            // A stale plan is told so first: what else is wrong with it follows from that.
            self.expect(expect, &ObjectKey::Task(task.id))?;
            checks::forward(stored, &task)?;
            observe::keep_observed(stored, &mut task);
        }
        checks::ports_free(self.state, &task)?;
        networks::addresses_free(self.state, task.held_addresses(), Holder::Task(task.id))?;
        self.put(expect, task, |task, meta| task.meta = meta)
    }

    fn remove_node(&mut self, expect: Expect, id: NodeId) -> Result<(), Refused> {
        let before = self.events.len();
        self.remove(expect, ObjectKey::Node(id))?;
        if self.events.len() > before {
            self.state.deny(id, self.at.plus(self.state.denial()));
            self.denied.push(id);
        }
        Ok(())
    }

    /// Stores the wanted part of an object with fresh version and times.
    fn put<T>(&mut self, expect: Expect, mut object: T, set_meta: impl Fn(&mut T, Meta)) -> Result<(), Refused>
    where
        T: Clone,
        Object: From<T>,
    {
        let key = Object::from(object.clone()).key();
        self.expect(expect, &key)?;
        let stored = self.state.get(&key).and_then(|stored| stored.meta());
        let created_at = stored.map_or(self.at, |stored| stored.created_at);
        set_meta(&mut object, Meta { version: self.version, created_at, updated_at: self.at });
        self.store(object);
        Ok(())
    }

    /// Stores an object as it is.
    fn store(&mut self, object: impl Into<Object>) {
        let object = object.into();
        let before = self.state.put(object.clone());
        let (version, key) = (self.version, object.key());
        self.events.push(Event { version, key, before, after: Some(object) });
    }

    /// Removes an object; one that is gone already is no error where nothing is expected of it.
    fn remove(&mut self, expect: Expect, key: ObjectKey) -> Result<(), Refused> {
        match expect {
            Expect::Version(_) => self.expect(expect, &key)?,
            Expect::Any | Expect::Absent => {}
        }
        if let Some(before) = self.state.remove(&key) {
            self.events.push(Event { version: self.version, key, before: Some(before), after: None });
        }
        Ok(())
    }

    fn expect(&self, expect: Expect, key: &ObjectKey) -> Result<(), Refused> {
        let stored = self.state.get(key);
        match (expect, &stored) {
            (Expect::Any, _) | (Expect::Absent, None) => Ok(()),
            (Expect::Absent, Some(stored)) => Err(Refused::Exists { object: name_of(stored) }),
            (Expect::Version(_), None) => Err(Refused::Gone { object: key.to_string() }),
            (Expect::Version(expected), Some(stored)) => match stored.meta() {
                Some(meta) if meta.version != expected => {
                    Err(Refused::OutOfSequence { object: name_of(stored), stored: meta.version, expected })
                }
                _ => Ok(()),
            },
        }
    }
}
