//! What operators do to nodes and to the swarm's settings: `Nodes.Update`, `Nodes.Remove`, `Clusters.Update`, and what
//! nodes see of it.

use skep_identity::{Credentials, NodeKey, Role};
use skep_proto::v1::certificate_authority_client::CertificateAuthorityClient;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::nodes_client::NodesClient;
use skep_proto::v1::session_down::Message as Down;
use skep_proto::v1::{
    Availability, ClusterSpec, GetNodeRequest, IssueRequest, NodeRole, NodeSpec, NodeState, RemoveNodeRequest,
    RenewRequest, UpdateClusterRequest, UpdateNodeRequest, WriteOptions,
};
use tonic::Code;

use crate::agent::Agent;
use crate::swarm::{MANAGER, MANAGER_SECRET, Member, Swarm, soon};

fn write(id: u8) -> Option<WriteOptions> {
    Some(WriteOptions { request_id: vec![id; 16] })
}

fn update(reference: &str, spec: NodeSpec) -> UpdateNodeRequest {
    UpdateNodeRequest { reference: reference.into(), spec: Some(spec), ..UpdateNodeRequest::default() }
}

fn role(role: NodeRole) -> NodeSpec {
    NodeSpec { role: role.into(), ..NodeSpec::default() }
}

async fn renewed(swarm: &Swarm, host: &Member) -> Role {
    let key = NodeKey::generate().unwrap();
    let renew = RenewRequest { csr_pem: key.signing_request_pem().unwrap() };
    let mut client = CertificateAuthorityClient::new(host.channel.clone());
    let renewed = soon("renew", client.renew(renew)).await.unwrap().into_inner();
    Credentials::new(key, &renewed.cert_chain_pem, swarm.ca.bundle()).unwrap().role()
}

async fn asked_to_renew(agent: &mut Agent) {
    agent.wait_for("a wish to renew", |message| matches!(message, Down::RenewCertificate(_)).then_some(())).await;
}

#[tokio::test]
async fn a_node_s_wishes_are_written_once_and_guarded() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut nodes = NodesClient::new(swarm.operator());
    let labels = [("zone".to_owned(), "a".to_owned())].into();
    let spec = NodeSpec { availability: Availability::Drain.into(), labels, ..NodeSpec::default() };
    let request = UpdateNodeRequest { write: write(1), ..update("host2", spec.clone()) };
    let first = nodes.update(request.clone()).await.unwrap().into_inner();
    assert_eq!((first.id.clone(), &*swarm.node(host.id).spec), (host.id.to_vec(), &spec));

    let later = nodes.update(update("host2", NodeSpec::default())).await.unwrap().into_inner();
    assert_eq!(nodes.update(request).await.unwrap().into_inner(), first, "a retry does nothing again");
    assert_eq!(*swarm.node(host.id).spec, NodeSpec::default());
    let expecting = |expect_version| UpdateNodeRequest { expect_version, ..update("host2", spec.clone()) };
    assert_eq!(nodes.update(expecting(first.version)).await.unwrap_err().code(), Code::Aborted);
    nodes.update(expecting(later.version)).await.unwrap();

    let refused = [
        (update("host9", NodeSpec::default()), Code::NotFound),
        (UpdateNodeRequest { reference: "host2".into(), ..UpdateNodeRequest::default() }, Code::InvalidArgument),
        (update("host2", NodeSpec { availability: 9, ..NodeSpec::default() }), Code::InvalidArgument),
    ];
    for (request, code) in refused {
        assert_eq!(nodes.update(request.clone()).await.unwrap_err().code(), code, "{request:?}");
    }
    swarm.stop().await;
}

#[tokio::test]
async fn the_last_manager_is_neither_demoted_nor_removed() {
    let swarm = Swarm::start().await;
    let mut nodes = NodesClient::new(swarm.operator());
    let status = nodes.update(update("self", role(NodeRole::Worker))).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert_eq!(status.message(), "attempting to demote the last manager of the swarm");
    for force in [false, true] {
        let remove = RemoveNodeRequest { reference: "self".into(), force, ..RemoveNodeRequest::default() };
        assert_eq!(nodes.remove(remove).await.unwrap_err().code(), Code::FailedPrecondition);
    }
    assert_eq!(swarm.node(MANAGER).spec.role(), NodeRole::Manager);
    let get = GetNodeRequest { reference: "self".into(), ..GetNodeRequest::default() };
    let shown = nodes.get(get).await.unwrap().into_inner().node.unwrap().manager.unwrap();
    assert!(shown.leader && shown.reachable);
    swarm.stop().await;
}

#[tokio::test]
async fn a_live_node_is_removed_by_force_only_and_is_out_at_once() {
    let swarm = Swarm::start().await;
    let (host, silent) = (swarm.join("host2").await, swarm.join("host3").await);
    let mut agent = Agent::connect(&host, "host2").await;
    let mut nodes = NodesClient::new(swarm.operator());
    let web = swarm.create_service("web", "sha256:00", 1).await;
    agent.until("a task", |tasks| tasks.len() == 1).await;
    let remove = |force, id| RemoveNodeRequest { reference: "host2".into(), force, write: write(id) };
    let status = nodes.remove(remove(false, 1)).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("is not down and can't be removed"), "{status:?}");

    let first = nodes.remove(remove(true, 2)).await.unwrap().into_inner();
    assert_eq!((first.id.clone(), first.hostname.as_str()), (host.id.to_vec(), "host2"));
    agent.wait_for("the farewell", |message| matches!(message, Down::Removed(_)).then_some(())).await;
    assert_eq!(nodes.remove(remove(true, 2)).await.unwrap().into_inner(), first, "a retry gets the first answer");
    assert!(swarm.state().is_denied(host.id));
    swarm
        .until("its task is given up", |state| state.tasks_on_node(host.id).all(|task| task.state.is_terminal()))
        .await;
    swarm.until("and replaced", |state| state.task_counts(web).wanted == 1).await;

    // It never had a session: there is nothing to stop.
    let remove = RemoveNodeRequest { reference: silent.id.to_string(), ..RemoveNodeRequest::default() };
    nodes.remove(remove).await.unwrap();
    assert_eq!(swarm.state().node_count(), 1);
    swarm.stop().await;
}

#[tokio::test]
async fn a_node_that_is_down_is_removed() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let agent = Agent::connect(&host, "host2").await;
    agent.stop_beating();
    swarm.until("it is down", |state| state.node(host.id).unwrap().status.state == NodeState::Down).await;
    let mut nodes = NodesClient::new(swarm.operator());
    let remove = RemoveNodeRequest { reference: "host2".into(), ..RemoveNodeRequest::default() };
    nodes.remove(remove).await.unwrap();
    assert!(swarm.state().node(host.id).is_none());
    swarm.stop().await;
}

#[tokio::test]
async fn a_changed_role_reaches_the_certificate() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let mut nodes = NodesClient::new(swarm.operator());
    assert_eq!(renewed(&swarm, &host).await, Role::Worker);
    nodes.update(update("host2", role(NodeRole::Manager))).await.unwrap();
    asked_to_renew(&mut agent).await;
    assert_eq!(renewed(&swarm, &host).await, Role::Manager);
    swarm.until("the role is known", |state| state.node(host.id).unwrap().role == NodeRole::Manager).await;
    let get = GetNodeRequest { reference: "host2".into(), ..GetNodeRequest::default() };
    let shown = nodes.get(get).await.unwrap().into_inner().node.unwrap();
    assert!(shown.status.unwrap().message.contains("its daemon has not started one yet"));

    // It never entered Raft, so it is a worker again at once.
    nodes.update(update("host2", role(NodeRole::Worker))).await.unwrap();
    asked_to_renew(&mut agent).await;
    assert_eq!(renewed(&swarm, &host).await, Role::Worker);
    swarm.stop().await;
}

#[tokio::test]
async fn a_manager_token_makes_a_manager_to_be() {
    let swarm = Swarm::start().await;
    let request = IssueRequest {
        token: swarm.token(MANAGER_SECRET),
        hostname: "host2".into(),
        request_id: vec![3; 16],
        ..IssueRequest::default()
    };
    let key = NodeKey::generate().unwrap();
    let issued = swarm.issue(&key, request.clone()).await.unwrap();
    let credentials = Credentials::new(key, &issued.cert_chain_pem, swarm.ca.bundle()).unwrap();
    assert_eq!((credentials.role(), issued.role()), (Role::Manager, NodeRole::Manager));
    let node = swarm.node(credentials.node_id());
    assert_eq!((node.spec.role(), node.role, node.manager.clone()), (NodeRole::Manager, NodeRole::Manager, None));
    let again = swarm.issue(&NodeKey::generate().unwrap(), request).await.unwrap();
    assert_eq!((again.role(), again.node_id), (NodeRole::Manager, issued.node_id));
    // It has no vote: the first manager is still the last.
    let mut nodes = NodesClient::new(swarm.operator());
    let status = nodes.update(update("self", role(NodeRole::Worker))).await.unwrap_err();
    assert!(status.message().contains("last manager"), "{status:?}");
    swarm.stop().await;
}

#[tokio::test]
async fn the_swarm_s_settings_are_checked_and_take_effect() {
    let swarm = Swarm::start().await;
    let host = swarm.join("host2").await;
    let mut agent = Agent::connect(&host, "host2").await;
    let mut clusters = ClustersClient::new(swarm.operator());
    let request = |spec, expect_version| UpdateClusterRequest { spec: Some(spec), expect_version, write: None };
    let with_heartbeat = |ms| ClusterSpec { heartbeat_period_ms: ms, ..ClusterSpec::default() };
    for bad in [99, 60_001, -1] {
        let status = clusters.update(request(with_heartbeat(bad), 0)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        assert!(status.message().contains("between 100 ms and 60 s"), "{status:?}");
    }
    let version = swarm.state().cluster().unwrap().meta.version;
    let snapshots = ClusterSpec { snapshot_log_bytes: 1, ..ClusterSpec::default() };
    assert_eq!(clusters.update(request(snapshots, 0)).await.unwrap_err().code(), Code::InvalidArgument);

    let updated = clusters.update(request(with_heartbeat(250), version)).await.unwrap().into_inner();
    assert_eq!(swarm.state().cluster().unwrap().meta.version, updated.version);
    assert_eq!(clusters.update(request(with_heartbeat(300), version)).await.unwrap_err().code(), Code::Aborted);
    let told = |message: &Down| match message {
        Down::HeartbeatAck(ack) if ack.heartbeat_period_ms == 250 => Some(()),
        _ => None,
    };
    agent.wait_for("the new period", told).await;
    // Several at once that expect no version all come true.
    let at_once = (251..255).map(|ms| {
        let mut clusters = clusters.clone();
        let request = request(with_heartbeat(ms), 0);
        async move { clusters.update(request).await }
    });
    for updated in futures::future::join_all(at_once).await {
        updated.unwrap();
    }
    // Keys and tokens are not touched.
    let issued = swarm.join("host3").await;
    assert!(swarm.state().node(issued.id).is_some());
    swarm.stop().await;
}
