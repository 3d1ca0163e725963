//! Managers that come and go by an operator's wish: the role manager with real Raft behind it.

use skep_proto::id::NodeId;
use skep_proto::v1::nodes_client::NodesClient;
use skep_proto::v1::quorum_client::QuorumClient;
use skep_proto::v1::relay_client::RelayClient;
use skep_proto::v1::watch_client::WatchClient;
use skep_proto::v1::{
    GetNodeRequest, HoldersRequest, NodeRole, NodeSpec, RaftMessage, ReadOptions, ReadVersionRequest,
    RemoveNodeRequest, UpdateNodeRequest, UpdateNodeResponse, WatchRequest,
};
use tonic::{Code, Status};

use crate::group::{Group, Host, create, soon, until};

async fn wish(by: &Host, node: NodeId, role: NodeRole) -> Result<UpdateNodeResponse, Status> {
    let spec = Some(NodeSpec { role: role.into(), ..NodeSpec::default() });
    let request = UpdateNodeRequest { reference: node.to_string(), spec, ..UpdateNodeRequest::default() };
    let mut nodes = NodesClient::new(by.channel());
    Ok(soon("another role", nodes.update(request)).await?.into_inner())
}

async fn demote(by: &Host, node: NodeId) -> Result<UpdateNodeResponse, Status> {
    wish(by, node, NodeRole::Worker).await
}

async fn remove(by: &Host, node: NodeId, force: bool) -> Result<(), Status> {
    let request = RemoveNodeRequest { reference: node.to_string(), force, ..RemoveNodeRequest::default() };
    let mut nodes = NodesClient::new(by.channel());
    soon("remove", nodes.remove(request)).await.map(|_| ())
}

/// Whether a node is shown as leader, and as reachable.
async fn shown(by: &Host, node: NodeId) -> (bool, bool) {
    let read = Some(ReadOptions { allow_stale: true, ..ReadOptions::default() });
    let request = GetNodeRequest { reference: node.to_string(), read };
    let answer = soon("get", NodesClient::new(by.channel()).get(request)).await.unwrap().into_inner();
    let manager = answer.node.unwrap().manager.unwrap();
    (manager.leader, manager.reachable)
}

fn voters(host: &Host) -> usize {
    host.manager().raft_status().borrow().membership.voters.len()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managers_are_demoted_down_to_the_last_the_leader_too() {
    let mut group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let (old, by) = (group.hosts[leader].id, &group.hosts[follower]);
    assert!(shown(by, old).await.0);
    assert_eq!(shown(&group.hosts[leader], by.id).await, (false, true));
    demote(by, old).await.unwrap();
    until("it is no manager", || by.store().state().node(old).unwrap().manager.is_none()).await;
    until("two vote", || voters(by) == 2).await;
    create(&by.store(), "after").await.unwrap();
    // What was demoted is no part of it any more.
    group.hosts.remove(leader).stop().await;

    let leader = group.leader_index().await;
    let (last, other) = (&group.hosts[leader], &group.hosts[1 - leader]);
    demote(other, other.id).await.unwrap();
    until("it is no manager", || last.store().state().node(other.id).unwrap().manager.is_none()).await;
    until("one votes", || voters(last) == 1).await;
    let refused = demote(last, last.id).await.unwrap_err();
    assert_eq!(refused.message(), "attempting to demote the last manager of the swarm");
    create(&last.store(), "alone").await.unwrap();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quorum_is_kept_while_a_dead_manager_is_removed() {
    let mut group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let dead = group.hosts[follower].id;
    group.hosts[follower].kill();
    let live = (0..3).find(|index| ![leader, follower].contains(index)).unwrap();
    let (by, other) = (&group.hosts[leader], &group.hosts[live]);
    soon("the dead one is missed", async {
        while shown(by, dead).await.1 {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    })
    .await;
    let refused = demote(by, other.id).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("cost the swarm its quorum"), "{refused:?}");
    assert!(remove(by, dead, false).await.unwrap_err().message().contains("demote it first"));
    remove(by, dead, true).await.unwrap();
    assert_eq!(voters(by), 2);
    for host in [by, other] {
        until("it is denied", || host.store().state().is_denied(dead)).await;
    }
    create(&other.store(), "after").await.unwrap();
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_manager_s_certificate_is_a_worker_s_until_it_is_promoted_again() {
    let group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let other = (0..3).find(|index| ![leader, follower].contains(index)).unwrap();
    let (by, old) = (&group.hosts[leader], &group.hosts[follower]);
    let get = || GetNodeRequest { reference: old.id.to_string(), ..GetNodeRequest::default() };
    // With its old certificate, by connections of before.
    let channels = [by, &group.hosts[other]].map(|host| old.channel_to(host.addr));
    let mut watches = Vec::new();
    for channel in &channels {
        let watch = WatchRequest { nodes: true, ..WatchRequest::default() };
        watches.push(soon("watch", WatchClient::new(channel.clone()).watch(watch)).await.unwrap().into_inner());
    }
    demote(by, old.id).await.unwrap();
    for host in [by, &group.hosts[other]] {
        let state = || host.store().state().node(old.id).unwrap().manager.is_none();
        until("it is no manager", state).await;
    }
    for mut watch in watches {
        let ended = soon("the watch ends", async {
            loop {
                if let Err(status) = watch.message().await {
                    return status;
                }
            }
        });
        assert_eq!(ended.await.code(), Code::PermissionDenied);
    }
    for channel in &channels {
        let refused = soon("get", NodesClient::new(channel.clone()).get(get())).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
        assert!(refused.message().contains("no manager any more"), "{refused:?}");
        let mut quorum = QuorumClient::new(channel.clone());
        let asked = soon("read version", quorum.read_version(ReadVersionRequest {})).await.unwrap_err();
        assert_eq!(asked.code(), Code::PermissionDenied, "{asked:?}");
        let step = RaftMessage { kind: 4, bytes: Vec::new() };
        let step = soon("step", quorum.step(step)).await.unwrap_err();
        assert_eq!(step.code(), Code::PermissionDenied, "{step:?}");
        let mut relay = RelayClient::new(channel.clone());
        let asked = soon("holders", relay.holders(HoldersRequest::default())).await.unwrap_err();
        assert_eq!(asked.code(), Code::PermissionDenied, "{asked:?}");
    }
    // The wish alone makes it one again: it has to enter, and is given the log.
    wish(by, old.id, NodeRole::Manager).await.unwrap();
    soon("get", NodesClient::new(channels[0].clone()).get(get())).await.unwrap();
    group.stop().await;
}
