//! The leader's loops as far as networks need them, for the tests of allocation: through `apply`, as a leader does it.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use skep_proto::id::{NetworkId, NodeId, ServiceId, TaskId};
use skep_proto::v1::{
    ContainerSpec, EndpointSpec, NetworkAttachment, PortSpec, ServiceSpec, Severity, TaskState, TaskStatus,
    TaskTemplate,
};

use super::*;
use crate::change::{Change, Group, Op, Plan, TaskObserved, Transaction};
use crate::doctor;
use crate::example::{START, network, replicated, swarm};
use crate::ids::Ids;
use crate::object::{Meta, Revision, Service};
use crate::orchestrate;
use crate::schedule::{self, Ledger};
use crate::store::State;

pub(super) const FRONT: NetworkId = NetworkId::new(1);
pub(super) const MESH: NetworkId = NetworkId::new(9);

/// The leader's loops, as far as networks need them.
pub(super) struct Leader {
    pub(super) state: State,
    pub(super) cursors: Cursors,
    ids: Ids,
}

impl Leader {
    /// Two nodes; `front` with `cidr`, and the routing mesh's network.
    pub(super) fn new(cidr: &str) -> Self {
        let mut state = swarm(2);
        state.put(network(1, "front", cidr, false));
        state.put(network(9, "ingress", "10.255.0.0/28", true));
        state.set_version(1);
        Self { state, cursors: Cursors::default(), ids: Ids::new(5) }
    }

    pub(super) fn apply(&mut self, groups: Vec<Group>) -> Vec<String> {
        let applied = self.state.apply(&Transaction { at: START, groups, ..Transaction::default() });
        applied.refused.into_iter().map(|(_, reason)| reason.to_string()).collect()
    }

    /// What `service create` writes.
    pub(super) fn create(
        &mut self,
        id: u128,
        replicas: u64,
        change: impl FnOnce(&mut ServiceSpec, &mut TaskTemplate),
    ) -> String {
        let (mut spec, mut template) = draft(id, replicas);
        change(&mut spec, &mut template);
        match endpoint::resolve(&self.state, &spec, &template, None, id as u64) {
            Err(error) => error.to_string(),
            Ok(Endpoint { ports, virtual_addresses }) => {
                let service_name = spec.name.as_str().into();
                let (id, meta, spec) = (ServiceId::new(id), Meta::default(), Arc::new(spec));
                let service = Service { id, meta, spec, revision: 1, ports, update: None, virtual_addresses };
                let revision = Revision {
                    key: service.current(),
                    template: Arc::new(template),
                    created_at: START,
                    copied_from: None,
                    service_name,
                    live: None,
                };
                let changes = [Op::PutService(service), Op::PutRevision(revision)].map(Change::create);
                self.apply(vec![Group(changes.into())]).pop().unwrap_or_default()
            }
        }
    }

    pub(super) fn remove(&mut self, id: u128) -> Vec<String> {
        self.apply(vec![Group(vec![Change::any(Op::RemoveService(ServiceId::new(id)))])])
    }

    pub(super) fn run(&mut self, plan: Plan) {
        let refused = self.apply(plan.groups);
        assert_eq!(refused, Vec::<String>::new());
    }

    /// Orchestrator, scheduler, reaper.
    pub(super) fn loops(&mut self) {
        let services = self.state.services().map(|service| service.id).chain(self.state.services_with_tasks());
        for id in services.collect::<BTreeSet<_>>() {
            let plan = orchestrate::plan(&self.state, id, START, &mut self.ids);
            self.run(plan);
        }
        let plan = schedule::plan(&self.state, &Ledger::of(&self.state), &mut self.cursors, START, 3);
        self.run(plan);
        let again = schedule::plan(&self.state, &Ledger::of(&self.state), &mut self.cursors, START, 4);
        assert_eq!(again.groups, [], "stable");
        for id in self.state.services_with_tasks().collect::<Vec<_>>() {
            let plan = orchestrate::reap(&self.state, id, START);
            self.run(plan);
        }
    }

    pub(super) fn observe(&mut self, task: TaskId, state: TaskState) {
        let node = self.state.task(task).and_then(|task| task.node).unwrap_or(NodeId::new(1));
        let status = Arc::new(TaskStatus { state: state.into(), ..TaskStatus::default() });
        let report = TaskObserved { task, node, status };
        self.apply(vec![Group(vec![Change::any(Op::ObserveTask(report))])]);
    }

    pub(super) fn tasks(&self) -> Vec<TaskId> {
        self.state.tasks().map(|task| task.id).collect()
    }

    /// Addresses of tasks on a network, by task.
    pub(super) fn held(&self, network: NetworkId) -> Vec<IpAddr> {
        let held = self.state.tasks_on_network(network).flat_map(|task| task.held_addresses().to_vec());
        held.filter(|one| one.network == network).flat_map(|one| one.iter()).collect()
    }

    pub(super) fn errors(&self) -> Vec<String> {
        self.state.pending_tasks().map(|task| task.status.error.clone()).collect()
    }

    pub(super) fn check(&self) {
        let found = doctor::check(&self.state);
        let errors: Vec<_> = found.into_iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert_eq!(errors, []);
    }
}

pub(super) fn draft(id: u128, replicas: u64) -> (ServiceSpec, TaskTemplate) {
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let networks = vec![attachment(FRONT, &[])];
    let template = TaskTemplate { containers: vec![container], networks, ..TaskTemplate::default() };
    let mode = Some(replicated(replicas));
    (ServiceSpec { name: format!("s{id}"), mode, ..ServiceSpec::default() }, template)
}

pub(super) fn attachment(network: NetworkId, addresses: &[&str]) -> NetworkAttachment {
    let addresses = addresses.iter().map(|&address| address.to_owned()).collect();
    NetworkAttachment { network_id: network.to_vec(), addresses, ..NetworkAttachment::default() }
}

pub(super) fn publish(spec: &mut ServiceSpec, published: &[u32]) {
    let port = |published: &u32| PortSpec { published_port: *published, target_port: 80, ..PortSpec::default() };
    spec.endpoint = Some(EndpointSpec { ports: published.iter().map(port).collect(), ..EndpointSpec::default() });
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
