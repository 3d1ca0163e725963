//! The networks' API, and services on networks: what operators are told, and what tasks and nodes get.

use std::collections::BTreeSet;

use skep_proto::id::{NetworkId, ServiceId};
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::networks_client::NetworksClient;
use skep_proto::v1::service_spec::Mode;
use skep_proto::v1::services_client::ServicesClient;
use skep_proto::v1::{
    ClusterSpec, ContainerSpec, CreateNetworkRequest, CreateServiceRequest, EndpointMode, EndpointSpec, EndpointState,
    FabricEndpoint, GetNetworkRequest, GetNetworkResponse, GetServiceRequest, ListNetworksRequest, NetworkAttachment,
    NetworkSpec, NodeDescription, PortSpec, PublishMode, Register, RemoveNetworkRequest, RemoveServiceRequest,
    ReplicatedMode, RestartPolicy, RollbackServiceRequest, ScaleServiceRequest, Service, ServiceSpec, SubnetSpec,
    TaskState, TaskTemplate, UpdateClusterRequest, UpdateServiceRequest, WantedState, WriteOptions,
};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::agent::{Agent, description, observed};
use crate::swarm::{Swarm, soon};

fn write(id: u8) -> Option<WriteOptions> {
    Some(WriteOptions { request_id: vec![id; 16] })
}

fn named(name: &str) -> NetworkSpec {
    NetworkSpec { name: name.into(), ..NetworkSpec::default() }
}

fn with_subnet(name: &str, subnet: &str) -> NetworkSpec {
    let subnet = SubnetSpec { subnet: subnet.into(), ..SubnetSpec::default() };
    NetworkSpec { subnets: vec![subnet], ..named(name) }
}

/// Calls as an operator.
struct Operator {
    networks: NetworksClient<Channel>,
    services: ServicesClient<Channel>,
}

impl Operator {
    fn of(swarm: &Swarm) -> Self {
        let channel = swarm.operator();
        Self { networks: NetworksClient::new(channel.clone()), services: ServicesClient::new(channel) }
    }

    async fn create(&mut self, spec: NetworkSpec) -> Result<NetworkId, Status> {
        let request = CreateNetworkRequest { spec: Some(spec), write: None };
        let created = soon("network create", self.networks.create(request)).await?.into_inner();
        Ok(NetworkId::from_wire(&created.id).unwrap())
    }

    async fn get(&mut self, reference: &str) -> Result<GetNetworkResponse, Status> {
        let request = GetNetworkRequest { reference: reference.into(), read: None };
        Ok(soon("network get", self.networks.get(request)).await?.into_inner())
    }

    async fn remove(&mut self, reference: &str) -> Result<(), Status> {
        let request = RemoveNetworkRequest { reference: reference.into(), write: None };
        soon("network rm", self.networks.remove(request)).await.map(drop)
    }

    async fn create_service(&mut self, spec: ServiceSpec) -> Result<ServiceId, Status> {
        let request = CreateServiceRequest { spec: Some(spec), ..CreateServiceRequest::default() };
        let created = soon("service create", self.services.create(request)).await?.into_inner();
        Ok(ServiceId::from_wire(&created.id).unwrap())
    }

    async fn update_service(&mut self, reference: &str, spec: ServiceSpec) -> Result<u64, Status> {
        let reference = reference.into();
        let request = UpdateServiceRequest { reference, spec: Some(spec), ..UpdateServiceRequest::default() };
        Ok(soon("service update", self.services.update(request)).await?.into_inner().revision)
    }

    /// A service and its spec, as a client sends it back.
    async fn service(&mut self, reference: &str) -> (Service, ServiceSpec) {
        let request = GetServiceRequest { reference: reference.into(), read: None };
        let summary = self.services.get(request).await.unwrap().into_inner().service.unwrap();
        let service = summary.service.unwrap();
        let template = summary.revision.and_then(|revision| revision.template);
        let spec = ServiceSpec { template, ..service.spec.clone().unwrap() };
        (service, spec)
    }
}

fn service(name: &str, networks: &[&str]) -> ServiceSpec {
    let image = format!("busybox@sha256:{}", "a".repeat(64));
    let container = ContainerSpec { name: "main".into(), image, ..ContainerSpec::default() };
    let attach = |name: &&str| NetworkAttachment { name: (*name).into(), ..NetworkAttachment::default() };
    let template = TaskTemplate {
        containers: vec![container],
        networks: networks.iter().map(attach).collect(),
        restart: Some(RestartPolicy { delay_ms: -1, ..RestartPolicy::default() }),
        ..TaskTemplate::default()
    };
    let mode = Some(Mode::Replicated(ReplicatedMode { replicas: 1 }));
    ServiceSpec { name: name.into(), mode, template: Some(template), ..ServiceSpec::default() }
}

fn publishing(ports: &[u32]) -> Option<EndpointSpec> {
    let port = |port: &u32| PortSpec { published_port: *port, target_port: 80, ..PortSpec::default() };
    Some(EndpointSpec { ports: ports.iter().map(port).collect(), ..EndpointSpec::default() })
}

fn attachment(spec: &mut ServiceSpec) -> &mut NetworkAttachment {
    &mut spec.template.as_mut().unwrap().networks[0]
}

async fn with_fabric(swarm: &Swarm, hostname: &str) -> Agent {
    let host = swarm.join(hostname).await;
    let fabric = FabricEndpoint {
        // Of no other host.
        public_key: format!("{hostname:-<32}").into_bytes(),
        wireguard_addr: "192.0.2.2:51820".into(),
        vxlan_addr: "192.0.2.2".into(),
        ..FabricEndpoint::default()
    };
    let description = NodeDescription { fabric: Some(fabric), ..description(hostname) };
    let register = Register { description: Some(description), ..Register::default() };
    let Ok(agent) = Agent::register(&host.channel, register).await else { panic!("{hostname} was not registered") };
    agent
}

#[tokio::test]
async fn a_new_swarm_has_the_routing_mesh() {
    let swarm = Swarm::start().await;
    let mut operator = Operator::of(&swarm);
    let list = operator.networks.list(ListNetworksRequest::default()).await.unwrap().into_inner();
    let [ingress] = &list.networks[..] else { panic!("{list:?}") };
    assert!(ingress.spec.as_ref().unwrap().ingress);
    assert_eq!(ingress.subnets[0].subnet, "10.255.0.0/16");
    assert!(ingress.vni >= 4096);
    let status = operator.create(NetworkSpec { ingress: true, ..named("mesh") }).await.unwrap_err();
    assert_eq!(status.code(), Code::AlreadyExists);
    // It can be replaced.
    operator.remove("ingress").await.unwrap();
    let mesh = NetworkSpec { ingress: true, ..with_subnet("mesh", "10.99.0.0/20") };
    operator.create(mesh).await.unwrap();
    assert_eq!(operator.get("mesh").await.unwrap().addresses[0].total, 4093);
    swarm.stop().await;
}

#[tokio::test]
async fn networks_are_made_once_and_get_what_is_free() {
    let swarm = Swarm::start().await;
    let mut operator = Operator::of(&swarm);
    let request = CreateNetworkRequest { spec: Some(named("front")), write: write(1) };
    let first = operator.networks.create(request.clone()).await.unwrap().into_inner();
    assert_eq!(operator.networks.create(request).await.unwrap().into_inner(), first, "a retry gets the first answer");
    operator.create(NetworkSpec { ipv6: true, ..named("back") }).await.unwrap();
    let (front, back) = (operator.get("front").await.unwrap(), operator.get("back").await.unwrap());
    let subnets = |answer: &GetNetworkResponse| {
        let network = answer.network.as_ref().unwrap();
        network.subnets.iter().map(|subnet| subnet.subnet.clone()).collect::<Vec<_>>()
    };
    assert_eq!(subnets(&front), ["10.0.0.0/24"]);
    assert_eq!((&*subnets(&back)[0], subnets(&back)[1].starts_with("fd")), ("10.0.1.0/24", true));
    assert_eq!((front.addresses[0].total, front.addresses[0].taken), (253, 0));
    let vnis = [&front, &back].map(|answer| answer.network.as_ref().unwrap().vni);
    assert_ne!(vnis[0], vnis[1]);

    let refused = [
        (named("front"), Code::AlreadyExists, "network front is there already"),
        (named("host"), Code::InvalidArgument, "invalid name: host is predefined"),
        (with_subnet("x", "10.0.1.128/25"), Code::FailedPrecondition, "overlaps with 10.0.1.0/24 of network back"),
        (with_subnet("x", "10.7.0.1/24"), Code::InvalidArgument, "10.7.0.0/24 is meant"),
    ];
    for (spec, code, message) in refused {
        let status = operator.create(spec).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(message), "{status:?}");
    }

    let remove = |id| RemoveNetworkRequest { reference: "front".into(), write: write(id) };
    let first = operator.networks.remove(remove(2)).await.unwrap().into_inner();
    assert_eq!(operator.networks.remove(remove(2)).await.unwrap().into_inner(), first);
    assert_eq!(operator.networks.remove(remove(3)).await.unwrap_err().code(), Code::NotFound);
    // What is free is given again.
    operator.create(named("again")).await.unwrap();
    assert_eq!(subnets(&operator.get("again").await.unwrap()), ["10.0.0.0/24"]);
    swarm.stop().await;
}

/// Each finds what another took and chooses anew.
#[tokio::test]
async fn networks_made_at_once_do_not_overlap() {
    let swarm = Swarm::start().await;
    let made = (0..6).map(|number| {
        let mut operator = Operator::of(&swarm);
        async move { operator.create(named(&format!("n{number}"))).await }
    });
    for made in futures::future::join_all(made).await {
        made.unwrap();
    }
    let state = swarm.state();
    let subnets: BTreeSet<_> = state.networks().map(|network| network.subnets[0].cidr).collect();
    let vnis: BTreeSet<_> = state.networks().map(|network| network.vni).collect();
    assert_eq!((subnets.len(), vnis.len()), (7, 7));
    swarm.stop().await;
}

#[tokio::test]
async fn a_service_on_networks_has_addresses_and_so_have_its_tasks() {
    let swarm = Swarm::start().await;
    let mut operator = Operator::of(&swarm);
    operator.create(named("front")).await.unwrap();
    let mut spec = ServiceSpec { endpoint: publishing(&[8080, 0]), ..service("web", &["front"]) };
    attachment(&mut spec).aliases = vec!["www".into()];
    let id = operator.create_service(spec).await.unwrap();
    let (web, _) = operator.service("web").await;
    assert_eq!(web.virtual_addresses.len(), 2, "front's and the mesh's");
    assert_eq!((web.ports[0].published_port, web.ports[1].published_port >= 30_000), (8080, true));

    let mut agent = with_fabric(&swarm, "host2").await;
    agent.until("a task", |tasks| tasks.len() == 1).await;
    let (task_id, task) = agent.tasks.iter().next().map(|(id, task)| (*id, task.clone())).unwrap();
    assert_eq!(task.networks.len(), 2);
    assert!(task.networks.iter().all(|one| one.addresses.len() == 1));
    agent.report(vec![observed(task_id, TaskState::Running)]).await;
    swarm.until("its node is in the mesh", |state| state.nodes().any(|node| node.ingress.is_some())).await;
    let front = operator.get("front").await.unwrap();
    assert_eq!(front.endpoints[0].addresses, task.networks[0].addresses);
    assert_eq!(front.endpoints[0].state(), EndpointState::Serving);
    assert_eq!(front.services[0].names, ["web", "www"]);
    assert_eq!((front.peers.len(), front.addresses[0].taken), (1, 2));
    assert!(front.peers[0].fabric_number > 1);

    let status = operator.remove("front").await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().starts_with("network front is in use by service web: "), "{status:?}");
    let remove = RemoveServiceRequest { reference: "web".into(), ..RemoveServiceRequest::default() };
    operator.services.remove(remove).await.unwrap();
    let status = operator.remove("front").await.unwrap_err();
    assert!(status.message().contains("in use by 1 task of the removed service web"), "{status:?}");
    agent.until("it is to stop", |tasks| tasks.values().all(|task| task.wanted() > WantedState::Running)).await;
    agent.report(vec![observed(task_id, TaskState::Shutdown)]).await;
    swarm.until("it has stopped", |state| state.tasks_of_service(id).all(|task| task.state.is_terminal())).await;
    operator.remove("front").await.unwrap();
    swarm.stop().await;
}

#[tokio::test]
async fn mistakes_about_networks_are_told() {
    let swarm = Swarm::start().await;
    let mut operator = Operator::of(&swarm);
    operator.create(named("front")).await.unwrap();
    operator.create_service(ServiceSpec { endpoint: publishing(&[80]), ..service("web", &[]) }).await.unwrap();
    let fixed = |replicas| {
        let mut spec = service("db", &["front"]);
        attachment(&mut spec).addresses = vec!["10.0.0.77".into()];
        spec.mode = Some(Mode::Replicated(ReplicatedMode { replicas }));
        spec
    };
    let mut outside = fixed(1);
    attachment(&mut outside).addresses = vec!["10.9.0.1".into()];
    let dnsrr = EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..publishing(&[81]).unwrap() };
    let front = swarm.state().network_by_name("front").unwrap().id.to_string();
    let cases = [
        (service("a", &["back"]), Code::NotFound, "network back not found"),
        (service("a", &["ingress"]), Code::InvalidArgument, "is the routing mesh's"),
        (service("a", &["front", &front]), Code::InvalidArgument, "network front is named twice"),
        (
            ServiceSpec { endpoint: publishing(&[80]), ..service("a", &[]) },
            Code::FailedPrecondition,
            "port 80/tcp is taken by service web",
        ),
        (ServiceSpec { endpoint: Some(dnsrr), ..service("a", &[]) }, Code::InvalidArgument, "endpoint mode vip"),
        (fixed(2), Code::InvalidArgument, "one replica at most"),
        (outside, Code::InvalidArgument, "address 10.9.0.1 is outside network front"),
    ];
    for (spec, code, message) in cases {
        let status = operator.create_service(spec).await.unwrap_err();
        assert_eq!(status.code(), code, "{status:?}");
        assert!(status.message().contains(message), "{status:?}");
    }
    operator.create_service(fixed(1)).await.unwrap();
    let scale = ScaleServiceRequest { reference: "db".into(), replicas: 2, ..ScaleServiceRequest::default() };
    assert_eq!(operator.services.scale(scale).await.unwrap_err().code(), Code::InvalidArgument);
    swarm.stop().await;
}

#[tokio::test]
async fn an_update_keeps_what_stays_and_frees_the_rest() {
    let swarm = Swarm::start().await;
    let mut operator = Operator::of(&swarm);
    let front = operator.create(named("front")).await.unwrap();
    let back = operator.create(named("back")).await.unwrap();
    let spec = ServiceSpec { endpoint: publishing(&[8080]), ..service("web", &["front"]) };
    operator.create_service(spec).await.unwrap();
    let (first, spec) = operator.service("web").await;
    assert_eq!(operator.update_service("web", spec.clone()).await.unwrap(), 1, "nothing differs");

    // Other ports of the mesh, and an alias of another network: addresses stay; the ports need no new tasks.
    let ports = ServiceSpec { endpoint: publishing(&[8080, 8081]), ..spec.clone() };
    assert_eq!(operator.update_service("web", ports.clone()).await.unwrap(), 1);
    let mut both = ports;
    let more = NetworkAttachment { name: "back".into(), ..NetworkAttachment::default() };
    both.template.as_mut().unwrap().networks.push(more);
    assert_eq!(operator.update_service("web", both.clone()).await.unwrap(), 2);
    let (second, _) = operator.service("web").await;
    let address = |service: &Service, network: NetworkId| {
        let all = &service.virtual_addresses;
        all.iter().find(|one| one.network_id == network.to_vec()).map(|one| one.addresses.clone())
    };
    assert_eq!(address(&second, front), address(&first, front));
    assert!(address(&second, back).is_some());

    // Leaving a network frees its address, and the network with it; going back takes another.
    both.template.as_mut().unwrap().networks.remove(0);
    assert_eq!(operator.update_service("web", both.clone()).await.unwrap(), 3);
    let (third, _) = operator.service("web").await;
    assert_eq!((address(&third, front), address(&third, back)), (None, address(&second, back)));
    let back_to = |to_revision| RollbackServiceRequest {
        reference: "web".into(),
        to_revision,
        ..RollbackServiceRequest::default()
    };
    operator.services.rollback(back_to(1)).await.unwrap();
    let (fourth, _) = operator.service("web").await;
    assert_eq!((address(&fourth, front).is_some(), address(&fourth, back)), (true, None));
    operator.remove("back").await.unwrap();
    let status = operator.services.rollback(back_to(3)).await.unwrap_err();
    assert_eq!(status.message(), format!("network {back} is not there (any more)"));

    // From vip to dnsrr, and to no published port.
    let (_, mut spec) = operator.service("web").await;
    spec.endpoint = Some(EndpointSpec { mode: EndpointMode::Dnsrr.into(), ..EndpointSpec::default() });
    assert_eq!(operator.update_service("web", spec.clone()).await.unwrap(), 4);
    assert_eq!(operator.service("web").await.0.virtual_addresses, []);
    let freed = ServiceSpec { endpoint: publishing(&[8080]), ..service("other", &[]) };
    operator.create_service(freed).await.unwrap();
    // A port of the host is its task's: another needs other tasks.
    let mut host = publishing(&[9090]).unwrap();
    host.ports[0].set_mode(PublishMode::Host);
    spec.endpoint = Some(host);
    assert_eq!(operator.update_service("web", spec).await.unwrap(), 5);
    swarm.stop().await;
}

#[tokio::test]
async fn the_pools_are_fixed() {
    let swarm = Swarm::start().await;
    let mut clusters = ClustersClient::new(swarm.operator());
    let spec = swarm.state().cluster().unwrap().spec.clone();
    let changed = ClusterSpec { address_pools: vec!["172.16.0.0/12".into()], ..spec };
    let request = UpdateClusterRequest { spec: Some(changed), ..UpdateClusterRequest::default() };
    let status = clusters.update(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("address_pools: is fixed when the swarm is made"), "{status:?}");
    swarm.stop().await;
}
