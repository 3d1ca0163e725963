//! Writes and reads at managers that do not lead.

use std::time::Duration;

use skep_core::apply::Refused;
use skep_core::change::{Change, Op};
use skep_core::object::{ImageName, Meta};
use skep_identity::Role;
use skep_manager::peers;
use skep_manager::store::WriteError;
use skep_proto::id::RequestId;
use skep_proto::v1::clusters_client::ClustersClient;
use skep_proto::v1::nodes_client::NodesClient;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_proto::v1::{
    ClusterSpec, DescribeRequest, GetClusterRequest, GetNodeRequest, NodeRole, RaftMessage, ReadOptions,
    ReadVersionRequest, SubmitRequest, UpdateClusterRequest,
};
use tonic::Code;

use crate::group::{Group, create, soon, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_followers_write_is_the_leaders_and_is_read_at_once_everywhere() {
    let group = Group::start(3).await;
    let follower = group.hosts[group.follower_index().await].store();
    let written = create(&follower, "web").await.unwrap();
    assert_eq!(written.object_id, b"web");
    assert!(follower.state().image_name("web").is_some(), "the answering manager has applied it");
    for host in &group.hosts {
        let state = host.store().fresh().await.unwrap();
        assert!(state.image_name("web").is_some(), "{} does not see it", host.id);
        assert!(state.version() >= written.version);
    }

    // Refusals keep their kind, and a retry its answer.
    let image = ImageName { name: "web".into(), meta: Meta::default(), digest: "e".into(), platforms: Vec::new() };
    let request = RequestId::new(rand::random());
    let again = || vec![Change::create(Op::PutImageName(image.clone()))];
    let refused = follower.write(Some(request), Vec::new(), again()).await.unwrap_err();
    assert!(matches!(refused, WriteError::Refused(Refused::Exists { .. })), "{refused}");
    let request = RequestId::new(rand::random());
    let changes = || {
        let image = ImageName { name: "db".into(), ..image.clone() };
        vec![Change::create(Op::PutImageName(image))]
    };
    let first = follower.write(Some(request), b"db".to_vec(), changes()).await.unwrap();
    for host in &group.hosts {
        let retried = host.store().write(Some(request), b"other".to_vec(), changes()).await.unwrap();
        assert_eq!((retried.version, &retried.object_id), (first.version, &first.object_id));
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_manager_makes_a_snapshot_after_as_much_log_as_the_swarm_says() {
    let group = Group::start(3).await;
    let spec = ClusterSpec { snapshot_log_bytes: 1 << 20, ..ClusterSpec::default() };
    let request = UpdateClusterRequest { spec: Some(spec), ..UpdateClusterRequest::default() };
    let leader = group.leader().await;
    soon("settings", ClustersClient::new(leader.channel()).update(request)).await.unwrap();
    assert!(leader.manager().raft_status().borrow().snapshot.is_none());
    for number in 0..12 {
        let image = ImageName {
            name: format!("web:{number}"),
            meta: Meta::default(),
            digest: "d".repeat(100 << 10),
            platforms: Vec::new(),
        };
        leader.store().write(None, Vec::new(), vec![Change::create(Op::PutImageName(image))]).await.unwrap();
    }
    for host in &group.hosts {
        let status = host.manager().raft_status();
        until("it has made one", || status.borrow().snapshot.is_some()).await;
    }
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_at_all_managers_is_written_once_each() {
    let group = Group::start(3).await;
    let mut writes = tokio::task::JoinSet::new();
    for number in 0..300 {
        let store = group.hosts[number % 3].store();
        writes.spawn(async move {
            let name = format!("burst-{number}");
            create(&store, &name).await.unwrap();
            assert!(store.state().image_name(&name).is_some());
        });
    }
    while let Some(done) = writes.join_next().await {
        done.unwrap();
    }
    let states: Vec<_> =
        futures::future::join_all(group.hosts.iter().map(|host| async { host.store().fresh().await.unwrap() })).await;
    assert_eq!(states[0].image_names().filter(|image| image.name.starts_with("burst-")).count(), 300);
    assert_eq!(states[0].version(), states[1].version());
    assert_eq!((states[0].digest(), states[1].digest()), (states[1].digest(), states[2].digest()));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_minority_refuses_reads_and_writes_until_it_heals() {
    let mut group = Group::start(3).await;
    let alone = group.follower_index().await;
    create(&group.hosts[alone].store(), "before").await.unwrap();
    for index in (0..3).filter(|index| *index != alone) {
        group.hosts[index].kill();
    }
    let (store, channel) = (group.hosts[alone].store(), group.hosts[alone].channel());
    let mut led = store.peers().leader();
    soon("it hears that nobody leads", led.wait_for(Option::is_none)).await.unwrap();
    assert!(matches!(create(&store, "alone").await, Err(WriteError::NoLeader)));
    assert!(matches!(store.fresh().await, Err(WriteError::NoLeader)));

    let mut clusters = ClustersClient::new(channel.clone());
    let read = |allow_stale| GetClusterRequest { read: Some(ReadOptions { min_version: 0, allow_stale }) };
    let refused = soon("a read", clusters.get(read(false))).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.message().contains("hears no leader"), "{refused:?}");
    let stale = soon("a stale read", clusters.get(read(true))).await.unwrap().into_inner();
    assert!(stale.cluster.is_some());

    let back = (0..3).find(|index| *index != alone).unwrap();
    group.hosts[back].restart().await;
    soon("the leader's state", group.hosts[back].manager().ready()).await.unwrap();
    let store = group.hosts[alone].store();
    soon("it heals", async {
        while create(&store, "after").await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    let state = group.hosts[back].store().fresh().await.unwrap();
    assert!(state.image_name("before").is_some() && state.image_name("after").is_some());
    assert!(state.image_name("alone").is_none(), "what was refused never happens");
    assert!(soon("a read", clusters.get(read(false))).await.is_ok());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_managers_speak_to_managers() {
    let group = Group::start(1).await;
    let (worker, _listener) = group.node(7, NodeRole::Worker, Role::Worker).await;
    let addr = group.hosts[0].manager().raft_status().borrow().leader.clone().unwrap().address;
    let mut quorum = QuorumClient::new(worker.channel_to(addr.parse().unwrap()));
    let denied = |status: tonic::Status| assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    denied(quorum.step(RaftMessage { kind: 1, bytes: Vec::new() }).await.unwrap_err());
    denied(quorum.submit(SubmitRequest { entry: Vec::new() }).await.unwrap_err());
    denied(quorum.read_version(ReadVersionRequest {}).await.unwrap_err());
    denied(quorum.describe(DescribeRequest::default()).await.unwrap_err());
    denied(peers::enter(worker.channel_to(addr.parse().unwrap()), "10.0.0.7:2377").await.unwrap_err());

    // A manager's certificate alone does not make one: an operator must want it, at an address that others reach.
    let (stale, _listener) = group.node(8, NodeRole::Worker, Role::Manager).await;
    let refused = peers::enter(stale.channel_to(addr.parse().unwrap()), "10.0.0.8:2377").await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("skep node promote"), "{refused:?}");
    let (wanted, _listener) = group.node(9, NodeRole::Manager, Role::Manager).await;
    for bad in ["0.0.0.0:2377", "10.0.0.9", "10.0.0.9:0", ""] {
        let refused = peers::enter(wanted.channel_to(addr.parse().unwrap()), bad).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad}");
    }
    let taken = peers::enter(wanted.channel_to(addr.parse().unwrap()), &addr).await.unwrap_err();
    assert!(taken.message().contains("already"), "{taken:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_waits_for_the_version_that_its_caller_has_seen() {
    let group = Group::start(3).await;
    let leader = group.leader().await;
    let follower = &group.hosts[group.follower_index().await];
    let mut nodes = NodesClient::new(follower.channel());
    for number in 0..20 {
        let written = create(&leader.store(), &format!("image-{number}")).await.unwrap();
        let read = Some(ReadOptions { min_version: written.version, allow_stale: false });
        let request = GetNodeRequest { reference: "self".into(), read };
        let answer = soon("a read", nodes.get(request)).await.unwrap().into_inner();
        assert!(answer.version >= written.version);
    }
    let read = Some(ReadOptions { min_version: u64::MAX, allow_stale: false });
    let early = nodes.get(GetNodeRequest { reference: "self".into(), read }).await.unwrap_err();
    assert_eq!(early.code(), Code::Unavailable);
    group.stop().await;
}
