//! A swarm in miniature for the updater's tests: the loops over the real `apply`, and nodes that do as they are told, or
//! not.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{NodeId, SecretId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    ContainerState, ContainerStatus, NodeState, SecretRef, Severity, TaskState, TaskStatus, TaskTemplate, UpdatePolicy,
    UpdateState, WantedState,
};

use super::{RollOut, begin};
use crate::change::{Change, Group, Op, Plan, TaskObserved, Transaction};
use crate::doctor;
use crate::example::{START, change_service, swarm, with_service};
use crate::ids::Ids;
use crate::network::Cursors;
use crate::object::{Data, ParcelId, ParcelSpec, RevisionKey, Service, Task};
use crate::orchestrate;
use crate::parcels::{self, NewVersion, Rollout};
use crate::schedule::{self, Ledger};
use crate::store::State;

/// The secret that the service uses.
pub(super) const DB: ParcelId = ParcelId::Secret(SecretId::new(7));

pub(super) struct World {
    pub(super) state: State,
    pub(super) service: ServiceId,
    pub(super) now: UnixMs,
    /// The nodes' clocks are ahead of the leader's by this much.
    pub(super) skew_ms: i64,
    /// Revisions that do not work.
    pub(super) broken: BTreeSet<u64>,
    /// When the loops asked to be woken.
    pub(super) wake_at: Option<UnixMs>,
    seed: u128,
}

impl World {
    /// Four nodes and a service without restart delay, which runs.
    pub(super) fn new(mode: Mode, policy: UpdatePolicy) -> Self {
        Self::with_template(mode, policy, |_| {})
    }

    pub(super) fn with_template(mode: Mode, policy: UpdatePolicy, change: impl FnOnce(&mut TaskTemplate)) -> Self {
        let mut state = swarm(4);
        let spec = ParcelSpec { name: "db".into(), ..ParcelSpec::default() };
        for made in parcels::creation(DB, spec, Data::new(b"1".to_vec()), START) {
            match made.op {
                Op::PutParcel(parcel) => drop(state.put(parcel)),
                Op::PutPayload(payload) => drop(state.put(payload)),
                other => panic!("{other:?}"),
            }
        }
        let secret = SecretRef { secret_id: DB.to_vec(), version: 1, name: "db".into(), ..SecretRef::default() };
        let service = with_service(&mut state, mode, |template| {
            template.containers[0].secrets = vec![secret];
            change(template);
        });
        change_service(&mut state, service, |spec| spec.update = Some(policy));
        state.set_version(1);
        let broken = BTreeSet::new();
        let mut world = Self { state, service, now: START, skew_ms: 0, broken, wake_at: None, seed: 1 };
        world.run();
        world
    }

    pub(super) fn apply(&mut self, groups: Vec<Group>) {
        let transaction = Transaction { at: self.now, groups, ..Transaction::default() };
        let applied = self.state.apply(&transaction);
        assert_eq!(applied.refused, vec![], "the loops plan on the state that they see");
    }

    fn assert_whole(&self) {
        let findings = doctor::check(&self.state);
        let errors: Vec<_> = findings.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }

    pub(super) fn carry_out(&mut self, plan: Plan) -> usize {
        let count = plan.groups.len();
        self.wake_at = [self.wake_at, plan.wake_at].into_iter().flatten().min();
        self.apply(plan.groups);
        count
    }

    pub(super) fn ids(&mut self) -> Ids {
        self.seed += 1;
        Ids::new(self.seed)
    }

    /// Every loop once. Returns how much they had to do.
    pub(super) fn pass(&mut self) -> usize {
        self.wake_at = None;
        let mut ids = self.ids();
        let mut groups = self.carry_out(orchestrate::plan(&self.state, self.service, self.now, &mut ids));
        let before = self.update_state();
        groups += self.carry_out(orchestrate::update(&self.state, self.service, self.now, &mut ids));
        let mut again = orchestrate::update(&self.state, self.service, self.now, &mut ids);
        again.groups.retain(|group| !matches!(group.0[..], [Change { op: Op::PutService(_), .. }]));
        if self.update_state() == before {
            assert_eq!(again.groups, vec![], "applied once, the plan is empty but for the update's own state");
        }
        groups += self.carry_out(orchestrate::due(&self.state, self.now));
        groups +=
            self.carry_out(schedule::plan(&self.state, &Ledger::of(&self.state), &mut Cursors::default(), self.now, 1));
        groups += self.carry_out(orchestrate::reap(&self.state, self.service, self.now));
        groups += self.carry_out(parcels::reap(&self.state, DB));
        if groups > 0 {
            self.assert_whole();
        }
        groups
    }

    pub(super) fn settle(&mut self) {
        for _ in 0..200 {
            if self.pass() == 0 {
                return;
            }
        }
        panic!("the loops do not come to rest");
    }

    /// Every node that is up takes each of its tasks one step further. Returns how many steps there were.
    pub(super) fn step(&mut self) -> usize {
        let tasks: Vec<Arc<Task>> = self.state.tasks().cloned().collect();
        let mut steps = 0;
        for task in tasks {
            let Some(next) = self.next_state(&task) else { continue };
            self.report(task.id, next);
            steps += 1;
        }
        steps
    }

    /// One task goes one step further: of those that can, the one in this position.
    pub(super) fn step_one(&mut self, position: usize) {
        let next: Vec<_> = self.state.tasks().filter_map(|task| Some((task.id, self.next_state(task)?))).collect();
        if let Some((id, state)) = next.get(position % next.len().max(1)).copied() {
            self.report(id, state);
        }
    }

    fn next_state(&self, task: &Task) -> Option<TaskState> {
        let node = self.state.node(task.node?)?;
        if node.status.state != NodeState::Ready || !task.occupies_node() {
            return None;
        }
        if task.wanted.wants_to_stop() {
            return Some(TaskState::Shutdown);
        }
        match task.state {
            TaskState::Assigned => Some(TaskState::Preparing),
            TaskState::Preparing => Some(TaskState::Ready),
            TaskState::Ready if task.wanted == WantedState::Ready => None,
            TaskState::Ready if self.broken.contains(&task.revision.number) => Some(TaskState::Failed),
            TaskState::Ready => Some(TaskState::Running),
            _ => None,
        }
    }

    /// What the task's node says of it.
    pub(super) fn report(&mut self, id: TaskId, task_state: TaskState) {
        let task = self.state.task(id).unwrap();
        let since_ms = self.now.0 + self.skew_ms;
        let mut containers = task.status.containers.clone();
        if task_state == TaskState::Running {
            containers = vec![ContainerStatus {
                name: "main".into(),
                state: ContainerState::Running.into(),
                started_at_ms: since_ms,
                ..ContainerStatus::default()
            }];
        }
        let status = TaskStatus { state: task_state.into(), since_ms, containers, ..TaskStatus::default() };
        let report = TaskObserved { task: id, node: task.node.unwrap(), status: Arc::new(status) };
        self.apply(vec![Group(vec![Change::any(Op::ObserveTask(report))])]);
    }

    /// Loops and nodes in turns, until nothing happens any more without the clock.
    pub(super) fn run(&mut self) {
        for _ in 0..500 {
            let planned = self.pass();
            if planned + self.step() == 0 {
                return;
            }
        }
        panic!("it goes on for ever");
    }

    /// Goes on in time, from wake to wake, until `span` is over.
    pub(super) fn run_for(&mut self, span: Duration) {
        let end = self.now.plus(span);
        self.run();
        while let Some(at) = self.wake_at.filter(|at| *at <= end) {
            assert!(at > self.now, "a wake in the past");
            self.now = at;
            self.run();
        }
        self.now = end;
        self.run();
    }

    pub(super) fn service(&self) -> &Arc<Service> {
        self.state.service(self.service).unwrap()
    }

    pub(super) fn template(&self) -> TaskTemplate {
        TaskTemplate::clone(&self.state.revision(self.service().current()).unwrap().template)
    }

    /// An operator changes the template.
    pub(super) fn update(&mut self, change: impl FnOnce(&mut TaskTemplate)) {
        let mut template = self.template();
        change(&mut template);
        let service = Service::clone(self.service());
        let changes = begin(&self.state, service, Arc::new(template), RollOut::Update, self.now);
        self.apply(vec![Group(changes)]);
    }

    pub(super) fn update_image(&mut self, image: &str) {
        self.update(|template| template.containers[0].image = image.into());
    }

    /// An operator rotates the secret.
    pub(super) fn rotate(&mut self, rollout: Rollout) {
        let data = Data::new(b"newer".to_vec());
        let parcel = Arc::clone(self.state.parcel(DB).unwrap());
        let new = NewVersion { data, copied_from: None, rollout };
        let rotation = parcels::rotation(&self.state, &parcel, new, self.now).unwrap();
        self.apply(vec![Group(rotation.changes)]);
    }

    pub(super) fn rotate_live(&mut self) {
        self.rotate(Rollout::Live { signal: "HUP".into() });
    }

    /// An operator goes back.
    pub(super) fn roll_back(&mut self, to: u64) {
        let template =
            Arc::clone(&self.state.revision(RevisionKey { service: self.service, number: to }).unwrap().template);
        let kind = RollOut::Rollback { copied_from: to, message: "manually requested rollback".into() };
        let changes = begin(&self.state, Service::clone(self.service()), template, kind, self.now);
        self.apply(vec![Group(changes)]);
    }

    pub(super) fn scale(&mut self, mode: Mode) {
        let mut service = Service::clone(self.service());
        Arc::make_mut(&mut service.spec).mode = Some(mode);
        let version = service.meta.version;
        self.apply(vec![Group(vec![Change::update(version, Op::PutService(service))])]);
    }

    pub(super) fn set_policy(&mut self, update: UpdatePolicy, rollback: UpdatePolicy) {
        change_service(&mut self.state, self.service, |spec| {
            spec.update = Some(update);
            spec.rollback = Some(rollback);
        });
    }

    pub(super) fn live(&self) -> Vec<Arc<Task>> {
        let tasks = self.state.tasks_of_service(self.service);
        tasks.filter(|task| task.wanted.wants_to_run() && !task.state.is_terminal()).cloned().collect()
    }

    /// Tasks that run, though they may be asked to stop already.
    pub(super) fn running(&self) -> usize {
        self.state.tasks_of_service(self.service).filter(|task| task.state == TaskState::Running).count()
    }

    /// Numbers of running tasks' revisions.
    pub(super) fn running_revisions(&self) -> Vec<u64> {
        let running = self.state.tasks_of_service(self.service).filter(|task| task.state == TaskState::Running);
        running.map(|task| task.revision.number).collect()
    }

    pub(super) fn crash(&mut self, id: TaskId) {
        self.report(id, TaskState::Failed);
    }

    pub(super) fn on_node(&self, number: u128) -> Vec<Arc<Task>> {
        self.live().into_iter().filter(|task| task.node == Some(NodeId::new(number))).collect()
    }

    pub(super) fn update_state(&self) -> UpdateState {
        self.service().update_state()
    }

    pub(super) fn message(&self) -> String {
        self.service().update.as_ref().unwrap().message.clone()
    }
}
