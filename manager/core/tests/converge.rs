//! The loops, the scheduler, the head and replicas together, without a clock or a network: nodes fail, come back, are
//! paused, drained and leave, tasks end, users scale. At every step the store is whole and replicas agree; left in
//! peace, the state converges, and the validator finds nothing.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use skep_core::assign::AssignmentSet;
use skep_core::change::{Change, Group, NodeObserved, Op, Plan, TaskObserved, Transaction};
use skep_core::codec::decode_entry;
use skep_core::doctor;
use skep_core::head::{Head, Submitted};
use skep_core::ids::Ids;
use skep_core::network::Cursors;
use skep_core::object::{Cluster, Meta, Node, NodeStatus, Revision, RevisionKey, Service, Task};
use skep_core::orchestrate::{self, RollOut};
use skep_core::schedule::{self, Ledger};
use skep_core::store::State;
use skep_proto::id::{ClusterId, NodeId, ServiceId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::{
    Availability, ClusterSpec, ContainerSpec, GlobalMode, NodeRole, NodeSpec, NodeState, PortSpec, PublishMode,
    ReplicatedMode, ServiceSpec, Severity, TaskState, TaskStatus, TaskTemplate, UpdateState, WantedState,
};

const NODES: u128 = 4;
const REPLICATED: ServiceId = ServiceId::new(1);
const GLOBAL: ServiceId = ServiceId::new(2);

/// What happens from outside.
#[derive(Clone, Debug)]
enum Happens {
    Scale(u64),
    /// A new image, or the revision before.
    Update(ServiceId),
    RollBack(ServiceId),
    RemoveService(ServiceId),
    NodeIs(u128, NodeState),
    SetAvailability(u128, Availability),
    RemoveNode(u128),
    /// The task in this position, if it runs, ends so.
    TaskEnds(usize, TaskState),
    TimePasses(u64),
}

fn happens() -> impl Strategy<Value = Happens> {
    let end = prop::sample::select(vec![TaskState::Complete, TaskState::Failed, TaskState::Rejected]);
    let availability = prop::sample::select(vec![
        Availability::Active,
        Availability::Active,
        Availability::Pause,
        Availability::Drain,
    ]);
    let node = prop::sample::select(vec![NodeState::Ready, NodeState::Ready, NodeState::Down]);
    prop_oneof![
        4 => (0..8u64).prop_map(Happens::Scale),
        2 => prop::sample::select(vec![REPLICATED, GLOBAL]).prop_map(Happens::Update),
        1 => prop::sample::select(vec![REPLICATED, GLOBAL]).prop_map(Happens::RollBack),
        1 => prop::sample::select(vec![REPLICATED, GLOBAL]).prop_map(Happens::RemoveService),
        4 => (1..=NODES, node).prop_map(|(id, state)| Happens::NodeIs(id, state)),
        2 => (1..=NODES, availability).prop_map(|(id, availability)| Happens::SetAvailability(id, availability)),
        1 => (1..=NODES).prop_map(Happens::RemoveNode),
        6 => (0..20usize, end).prop_map(|(position, end)| Happens::TaskEnds(position, end)),
        3 => (0..100_000u64).prop_map(Happens::TimePasses),
    ]
}

/// The leader, a follower, and the time.
struct Swarm {
    head: Head,
    follower: State,
    now: UnixMs,
    ids: Ids,
}

impl Swarm {
    fn new() -> Self {
        let mut swarm =
            Self { head: Head::default(), follower: State::default(), now: UnixMs(1_000_000), ids: Ids::new(5) };
        let mut changes = vec![Change::create(Op::PutCluster(cluster()))];
        changes.extend((1..=NODES).map(|id| Change::create(Op::PutNode(node(id)))));
        changes.extend(service(REPLICATED, "web", Mode::Replicated(ReplicatedMode { replicas: 3 }), Vec::new()));
        let port = PortSpec { published_port: 80, mode: PublishMode::Host.into(), ..PortSpec::default() };
        changes.extend(service(GLOBAL, "agent", Mode::Global(GlobalMode {}), vec![port]));
        swarm.write(vec![Group(changes)]);
        swarm
    }

    fn state(&self) -> State {
        self.head.state().clone()
    }

    /// Writes groups of which none may be refused: one leader, whose loops see every write, has no races.
    fn write(&mut self, groups: Vec<Group>) {
        let before = self.state();
        let written = self.head.submit(Transaction { at: self.now, groups: groups.clone(), ..Transaction::default() });
        match written {
            Submitted::Queued { refused, .. } | Submitted::Nothing { refused, .. } => {
                assert_eq!(refused, vec![], "{groups:#?}\n{before:#?}");
            }
            Submitted::Repeated(record) => panic!("nobody asked twice: {record:?}"),
        }
        while let Some(packed) = self.head.pack() {
            for transaction in decode_entry(&packed.bytes).unwrap() {
                self.follower.apply(&transaction);
            }
        }
        let errors = doctor::check(self.head.state());
        let errors: Vec<_> = errors.iter().filter(|finding| finding.severity == Severity::Error).collect();
        assert!(errors.is_empty(), "{errors:#?}");
    }

    fn one(&mut self, op: Op) {
        self.write(vec![Group(vec![Change::any(op)])]);
    }

    fn happen(&mut self, event: &Happens) {
        match *event {
            Happens::Scale(replicas) => {
                if let Some(service) = self.state().service(REPLICATED) {
                    let mut scaled = Service::clone(service);
                    Arc::make_mut(&mut scaled.spec).mode = Some(Mode::Replicated(ReplicatedMode { replicas }));
                    self.one(Op::PutService(scaled));
                }
            }
            Happens::Update(id) => self.update(id),
            Happens::RollBack(id) => self.roll_back(id),
            Happens::RemoveService(id) => self.one(Op::RemoveService(id)),
            Happens::NodeIs(id, state) => {
                let status = NodeStatus { state, since: self.now, ..NodeStatus::default() };
                let node = Some(NodeId::new(id));
                self.one(Op::ObserveNode(NodeObserved { node, status: Some(status), ..NodeObserved::default() }));
            }
            Happens::SetAvailability(id, availability) => {
                if let Some(node) = self.state().node(NodeId::new(id)) {
                    let mut node = Node::clone(node);
                    Arc::make_mut(&mut node.spec).availability = availability.into();
                    self.one(Op::PutNode(node));
                }
            }
            Happens::RemoveNode(id) => self.one(Op::RemoveNode(NodeId::new(id))),
            Happens::TaskEnds(position, end) => {
                let state = self.state();
                let running = state.tasks().filter(|task| task.state == TaskState::Running).nth(position);
                if let Some((id, node)) = running.and_then(|task| Some((task.id, task.node?))) {
                    self.report(id, node, end);
                }
            }
            Happens::TimePasses(ms) => self.now = self.now.plus(Duration::from_millis(ms)),
        }
    }

    fn update(&mut self, id: ServiceId) {
        let state = self.state();
        let Some(service) = state.service(id) else { return };
        let mut template = TaskTemplate::clone(&state.revision(service.current()).unwrap().template);
        template.containers[0].image = format!("busybox:{}", service.revision + 1);
        let (service, template) = (Service::clone(service), Arc::new(template));
        let changes = orchestrate::begin_roll_out(&state, service, template, RollOut::Update, self.now);
        self.write(vec![Group(changes)]);
    }

    fn roll_back(&mut self, id: ServiceId) {
        let state = self.state();
        let Some(service) = state.service(id) else { return };
        let Some(number) = service.update.as_ref().map(|update| update.from_revision) else { return };
        // The reaper keeps the way back.
        let template = Arc::clone(&state.revision(RevisionKey { service: id, number }).unwrap().template);
        let roll_out = RollOut::Rollback { copied_from: number, message: "asked for".into() };
        let changes = orchestrate::begin_roll_out(&state, Service::clone(service), template, roll_out, self.now);
        self.write(vec![Group(changes)]);
    }

    fn report(&mut self, task: TaskId, node: NodeId, state: TaskState) {
        let status = TaskStatus { state: state.into(), since_ms: self.now.0, ..TaskStatus::default() };
        self.one(Op::ObserveTask(TaskObserved { task, node, status: Arc::new(status) }));
    }

    /// Every node that is up does what it is told.
    fn nodes_act(&mut self) {
        let state = self.state();
        for node in state.nodes().filter(|node| node.status.state == NodeState::Ready) {
            let assigned = AssignmentSet::of(&state, node.id);
            for task in state.tasks_on_node(node.id).filter(|task| assigned.has_task(task.id)) {
                let to = match (task.state.is_terminal(), task.wanted) {
                    (true, _) => continue,
                    (false, wanted) if wanted.wants_to_stop() => TaskState::Shutdown,
                    (false, WantedState::Ready) => task.state.max(TaskState::Ready),
                    (false, _) => TaskState::Running,
                };
                if task.state != to {
                    self.report(task.id, node.id, to);
                }
            }
        }
    }

    /// All loops once, each on the state that the one before left. Returns whether any had something to do.
    fn loops_act(&mut self) -> bool {
        let mut acted = false;
        let mut services: Vec<ServiceId> = self.state().services().map(|service| service.id).collect();
        services.extend(self.state().services_with_tasks());
        services.extend([REPLICATED, GLOBAL]);
        for service in services {
            let plan = orchestrate::plan(&self.state(), service, self.now, &mut self.ids);
            acted |= self.carry_out(plan);
            let plan = orchestrate::update(&self.state(), service, self.now, &mut self.ids);
            acted |= self.carry_out(plan);
            let plan = orchestrate::reap(&self.state(), service, self.now);
            acted |= self.carry_out(plan);
        }
        let plan = orchestrate::due(&self.state(), self.now);
        acted |= self.carry_out(plan);
        let state = self.state();
        let plan = schedule::plan(&state, &Ledger::of(&state), &mut Cursors::default(), self.now, 7);
        self.carry_out(plan) | acted
    }

    fn carry_out(&mut self, plan: Plan) -> bool {
        let has_any = !plan.groups.is_empty();
        self.write(plan.groups);
        has_any
    }

    /// Whether something is to happen when time passes: a task starts, a new one was watched for long enough.
    fn waits(&mut self) -> bool {
        let state = self.state();
        let mut watches = |id| orchestrate::update(&state, id, self.now, &mut self.ids).wake_at.is_some();
        // What follows a task on a silent node waits for the node.
        let is_silent = |id| state.node(id).is_some_and(|node| node.status.state == NodeState::Down);
        let held = |task: &Arc<Task>| task.start_at.is_none() && task.node.is_some_and(is_silent);
        let is_tried_again = |task: &Arc<Task>| {
            task.wanted.wants_to_run() && task.state == TaskState::Rejected && !task.node.is_some_and(is_silent)
        };
        let waits = state.waiting_tasks().any(|task| !held(task)) || state.tasks().any(is_tried_again);
        waits || watches(REPLICATED) || watches(GLOBAL)
    }

    /// Lets everything come to rest; time passes, so that delays run out.
    fn settle(&mut self) {
        for _ in 0..60 {
            self.nodes_act();
            let acted = self.loops_act();
            let waited = self.waits();
            self.now = self.now.plus(Duration::from_secs(10));
            if !acted && !waited {
                return;
            }
        }
        panic!("it does not come to rest: {:#?}", self.state().tasks().collect::<Vec<_>>());
    }
}

fn cluster() -> Cluster {
    Cluster {
        id: ClusterId::new(1),
        meta: Meta::default(),
        spec: ClusterSpec::default(),
        root_cert_pem: String::new(),
        root_key_pem: String::new(),
        worker_token_secret: [1; 16],
        manager_token_secret: [2; 16],
        feature_level: 1,
        last_raft_id: 1,
        recovery_epoch: 0,
        unlock_key: None,
        data_key_epoch: 0,
        root_rotation: None,
    }
}

fn node(id: u128) -> Node {
    Node {
        id: NodeId::new(id),
        meta: Meta::default(),
        spec: Arc::new(NodeSpec::default()),
        description: None,
        status: NodeStatus { state: NodeState::Ready, ..NodeStatus::default() },
        role: NodeRole::Worker,
        manager: None,
        fabric_number: None,
        ingress: None,
    }
}

fn service(id: ServiceId, name: &str, mode: Mode, ports: Vec<PortSpec>) -> [Change; 2] {
    let spec = ServiceSpec { name: name.into(), mode: Some(mode), ..ServiceSpec::default() };
    let container = ContainerSpec { name: "main".into(), image: "busybox".into(), ..ContainerSpec::default() };
    let template = TaskTemplate { containers: vec![container], ..TaskTemplate::default() };
    let service = Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(spec),
        revision: 1,
        ports,
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: UnixMs::ZERO,
        copied_from: None,
        service_name: name.into(),
        live: None,
    };
    [Change::create(Op::PutService(service)), Change::create(Op::PutRevision(revision))]
}

/// What must hold once the swarm is at rest.
fn check_rest(swarm: &Swarm) -> Result<(), TestCaseError> {
    let state = swarm.state();
    let is_up = |node: &Node| node.status.state == NodeState::Ready;
    let takes = |node: &Node| is_up(node) && node.spec.availability() == Availability::Active;
    let is_open = state.nodes().any(|node| takes(node));
    let live = |id| state.tasks_of_service(id).filter(|task| task.wanted.wants_to_run() && !task.state.is_terminal());
    let runs = |task: &&Arc<Task>| task.state == TaskState::Running;
    if let Some(service) = state.service(REPLICATED) {
        let Some(Mode::Replicated(mode)) = &service.spec.mode else { panic!("it is replicated") };
        prop_assert_eq!(live(REPLICATED).count() as u64, mode.replicas);
        prop_assert!(!is_open || live(REPLICATED).all(|task| runs(&task)));
        prop_assert!(state.nodes().any(|node| is_up(node)) || !live(REPLICATED).any(|task| runs(&task)));
    }
    for node in state.nodes().filter(|node| state.service(GLOBAL).is_some() && is_up(node)) {
        let running = live(GLOBAL).filter(runs).filter(|task| task.node == Some(node.id)).count();
        match node.spec.availability() {
            Availability::Active => prop_assert_eq!(running, 1),
            // It keeps what it has.
            Availability::Pause => prop_assert!(running <= 1),
            Availability::Drain => prop_assert_eq!(running, 0),
        }
    }
    for task in live(REPLICATED).chain(live(GLOBAL)) {
        // A node that is down keeps its global task; whatever else has a place runs there.
        let up = task.node.and_then(|id| state.node(id)).is_some_and(|node| is_up(node));
        prop_assert!(!(up && task.occupies_node()) || runs(&task), "{task:#?}");
    }
    for service in state.services().filter(|service| is_open && service.update.is_some()) {
        // Paused by a task that failed; else done.
        prop_assert!(!matches!(service.update_state(), UpdateState::Updating | UpdateState::RollbackStarted));
    }
    let gone = |id| state.service(id).is_none();
    let leftover = state.tasks().filter(|task| gone(task.service()) && !task.occupies_node());
    prop_assert_eq!(leftover.count(), 0);
    prop_assert_eq!(doctor::check(&state), vec![]);
    prop_assert_eq!(swarm.follower.digest(), state.digest());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn left_in_peace_the_swarm_is_as_wanted(events in vec((happens(), any::<bool>(), any::<bool>()), 0..25)) {
        let mut swarm = Swarm::new();
        for (event, nodes_act, loops_act) in &events {
            swarm.happen(event);
            if *nodes_act {
                swarm.nodes_act();
            }
            if *loops_act {
                swarm.loops_act();
            }
        }
        swarm.settle();
        check_rest(&swarm)?;
    }
}
