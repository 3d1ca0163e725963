//! Network tables in sessions, and tasks that drain: agents that apply tables, and some that do not.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use skep_core::change::{Change, Op};
use skep_core::object::{Meta, Network, Revision, Service, Subnet, Task};
use skep_proto::id::{NetworkId, NodeId, ServiceId};
use skep_proto::time::UnixMs;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::session_up::Message as Up;
use skep_proto::v1::{
    AppliedVersion, ContainerSpec, EndpointState, FabricEndpoint, Heartbeat, NetworkAttachment, NetworkSpec,
    NetworkTable, NodeDescription, Register, ReplicatedMode, ServiceSpec, TaskState, TaskTemplate, WantedState,
};

use crate::agent::{Agent, description, observed};
use crate::swarm::{Member, Swarm, soon};

const FRONT: NetworkId = NetworkId::new(1);

fn with_fabric(hostname: &str) -> NodeDescription {
    let fabric = FabricEndpoint {
        public_key: format!("{hostname:-<32}").into_bytes(),
        wireguard_addr: "192.0.2.1:51820".into(),
        vxlan_addr: "192.0.2.1".into(),
        ..FabricEndpoint::default()
    };
    NodeDescription { fabric: Some(fabric), ..description(hostname) }
}

async fn connect(member: &Member, hostname: &str, networks: Vec<AppliedVersion>) -> Agent {
    let register = Register { description: Some(with_fabric(hostname)), networks, ..Register::default() };
    let agent = Agent::register(&member.channel, register).await.unwrap();
    // Heartbeats are said by hand: they carry versions.
    agent.stop_beating();
    agent
}

/// A network, and a service on it.
async fn service(swarm: &Swarm, replicas: u64) -> ServiceId {
    let cidr = "10.77.0.0/24".parse().unwrap();
    let network = Network {
        id: FRONT,
        meta: Meta::default(),
        spec: Arc::new(NetworkSpec { name: "front".into(), ..NetworkSpec::default() }),
        subnets: vec![Subnet { cidr, gateway: Ipv4Addr::new(10, 77, 0, 1).into(), range: None }],
        vni: Some(4097),
    };
    let attachment = NetworkAttachment { network_id: FRONT.to_vec(), name: "front".into(), ..Default::default() };
    let container = ContainerSpec { name: "main".into(), image: "web".into(), ..ContainerSpec::default() };
    let template = TaskTemplate { containers: vec![container], networks: vec![attachment], ..TaskTemplate::default() };
    let id = ServiceId::new(rand::random());
    let mode = Mode::Replicated(ReplicatedMode { replicas });
    let service = Service {
        id,
        meta: Meta::default(),
        spec: Arc::new(ServiceSpec { name: "web".into(), mode: Some(mode), ..ServiceSpec::default() }),
        revision: 1,
        ports: Vec::new(),
        update: None,
        virtual_addresses: Vec::new(),
    };
    let revision = Revision {
        key: service.current(),
        template: Arc::new(template),
        created_at: UnixMs::ZERO,
        copied_from: None,
        service_name: "web".into(),
        live: None,
    };
    let ops = [Op::PutNetwork(network), Op::PutService(service), Op::PutRevision(revision)];
    swarm.write(ops.into_iter().map(Change::create).collect()).await;
    id
}

async fn table(agent: &mut Agent, what: &str, wanted: impl Fn(&NetworkTable) -> bool) -> NetworkTable {
    agent
        .wait_for(what, |message| match message {
            Down::Network(bytes) => Some(NetworkTable::decode(bytes.clone()).unwrap()).filter(&wanted),
            _ => None,
        })
        .await
}

async fn say_applied(agent: &Agent, version: u64) {
    let networks = vec![AppliedVersion { object_id: FRONT.to_vec(), version }];
    agent.say(Up::Heartbeat(Heartbeat { networks, ..Heartbeat::default() })).await;
}

fn on(swarm: &Swarm, web: ServiceId, node: NodeId) -> Arc<Task> {
    swarm.tasks(web).into_iter().find(|task| task.node == Some(node)).unwrap()
}

/// Two nodes with a running task each.
async fn two(swarm: &Swarm) -> (ServiceId, BTreeMap<NodeId, Agent>) {
    let mut agents = BTreeMap::new();
    for name in ["host1", "host2"] {
        let member = swarm.join(name).await;
        agents.insert(member.id, connect(&member, name, Vec::new()).await);
    }
    let web = service(swarm, 2).await;
    for (id, agent) in &mut agents {
        agent.until("a task", |tasks| tasks.len() == 1).await;
        let task = on(swarm, web, *id);
        agent.report(vec![observed(task.id, TaskState::Running)]).await;
    }
    (web, agents)
}

#[tokio::test]
async fn a_table_comes_before_its_task_and_goes_after_it() {
    let swarm = Swarm::start().await;
    let member = swarm.join("host1").await;
    let mut agent = connect(&member, "host1", Vec::new()).await;
    let web = service(&swarm, 1).await;
    let mut first = None;
    soon("a table, then the task", async {
        loop {
            let seen = agent.wait_for("a message", |message| match message {
                Down::Network(bytes) => Some(NetworkTable::decode(bytes.clone()).unwrap()),
                _ => None,
            });
            let message = seen.await;
            if first.is_none() {
                assert!(agent.tasks.is_empty(), "the task came before its network");
                assert!(message.complete && message.end && message.network.is_some());
                first = Some(message);
                return;
            }
        }
    })
    .await;
    agent.until("the task", |tasks| tasks.len() == 1).await;
    let task = on(&swarm, web, member.id);
    assert_eq!(agent.tasks[&task.id].networks.len(), 1);
    agent.report(vec![observed(task.id, TaskState::Running)]).await;
    let serving = |table: &NetworkTable| table.put_endpoints.iter().any(|row| row.state() == EndpointState::Serving);
    let now = table(&mut agent, "it serves", serving).await;
    // It comes back with what it has: no table again, then what is new.
    let applied = vec![AppliedVersion { object_id: FRONT.to_vec(), version: now.version }];
    drop(agent);
    let mut agent = connect(&member, "host1", applied).await;
    agent.until("the task", |tasks| tasks.len() == 1).await;
    agent.report(vec![observed(task.id, TaskState::Failed)]).await;
    let next = table(&mut agent, "what is new", |_| true).await;
    assert!(!next.complete, "{next:?}");
    swarm.stop().await;
}

#[tokio::test]
async fn a_task_stops_when_all_nodes_know_that_it_drains() {
    let swarm = Swarm::start().await;
    let (web, mut agents) = two(&swarm).await;
    swarm.scale(web, 1).await;
    swarm.until("one drains", |state| state.tasks().any(|task| task.wanted == WantedState::Draining)).await;
    let draining = swarm.tasks(web).into_iter().find(|task| task.wanted == WantedState::Draining).unwrap();
    let drained = draining.meta.version;
    let began = Instant::now();
    let quiet = |table: &NetworkTable| table.version >= drained && table.end;
    let mut said = 0;
    for agent in agents.values_mut() {
        let version = table(agent, "it is quiet", quiet).await.version;
        said += 1;
        if said == 2 {
            let still = swarm.state().task(draining.id).unwrap().wanted;
            assert_eq!(still, WantedState::Draining, "one node does not know yet");
        }
        say_applied(agent, version).await;
    }
    let removing = |task: Option<&Arc<Task>>| task.is_none_or(|task| task.wanted == WantedState::Remove);
    swarm.until("it stops", |state| removing(state.task(draining.id))).await;
    assert!(began.elapsed() < Duration::from_millis(1_500), "nobody's time ran out: {:?}", began.elapsed());
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_never_applies_holds_nobody_up_for_long() {
    let swarm = Swarm::start().await;
    let (web, agents) = two(&swarm).await;
    // They live, and say nothing of tables.
    let beating = agents.values().map(|agent| async {
        loop {
            agent.say(Up::Heartbeat(Heartbeat::default())).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    });
    let beating = futures::future::join_all(beating);
    let removed = async {
        let began = Instant::now();
        swarm.scale(web, 0).await;
        let going = |task: &Arc<Task>| task.wanted == WantedState::Remove;
        swarm.until("both stop", |state| state.tasks_of_service(web).all(going)).await;
        began.elapsed()
    };
    tokio::select! {
        _ = beating => panic!("they beat for ever"),
        took = removed => assert!(took > Duration::from_millis(1_900), "{took:?}"),
    }
    drop(agents);
    swarm.stop().await;
}
