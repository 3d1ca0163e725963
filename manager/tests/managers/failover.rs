//! Managers that come, go, and come back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use skep_manager::topic::Topic;
use skep_manager::{Ended, ManagerStart};
use skep_proto::v1::watch_client::WatchClient;
use skep_proto::v1::{NodeRole, WatchRequest};
use tonic::Code;

use crate::group::{Group, create, soon, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_write_is_lost_or_doubled_when_the_leader_is_killed() {
    let mut group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let (store, stop) = (group.hosts[follower].store(), Arc::clone(&stop));
        writers.spawn(async move {
            let (mut names, mut longest) = (Vec::new(), Duration::ZERO);
            while !stop.load(Ordering::Relaxed) {
                let (name, started) = (format!("{writer}-{}", names.len()), Instant::now());
                // A retry that had a second effect would be refused: the name is taken then.
                create(&store, &name).await.unwrap();
                longest = longest.max(started.elapsed());
                names.push(name);
            }
            (names, longest)
        });
    }
    let store = group.hosts[follower].store();
    until("writes are under way", || store.state().image_names().count() > 100).await;
    group.hosts[leader].kill();
    let before = store.state().image_names().count();
    soon("another one leads", async {
        while store.state().image_names().count() < before + 100 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    let (mut written, mut gap) = (0, Duration::ZERO);
    while let Some(done) = writers.join_next().await {
        let (names, longest) = done.unwrap();
        let state = store.state();
        assert!(names.iter().all(|name| state.image_name(name).is_some()), "an acknowledged write is lost");
        written += names.len();
        gap = gap.max(longest);
    }
    assert_eq!(store.state().image_names().count(), written);
    assert!(gap < Duration::from_secs(8), "{gap:?}");
    eprintln!("gap {gap:?}, {written} writes");

    // The old leader comes back as a follower and learns what it missed.
    group.hosts[leader].restart().await;
    soon("it is ready", group.hosts[leader].manager().ready()).await.unwrap();
    let (back, now) = (group.hosts[leader].store().state(), store.fresh().await.unwrap());
    assert!(back.version() >= now.version() && back.image_names().count() == written);
    assert!(!group.hosts[leader].leads());
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orderly_stop_hands_the_lead_over() {
    let mut group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let store = group.hosts[follower].store();
    create(&store, "before").await.unwrap();
    let started = Instant::now();
    let (mut host, write) = (group.hosts.remove(leader), create(&store, "meanwhile"));
    let ((), written) = tokio::join!(host.stop(), write);
    written.unwrap();
    create(&store, "after").await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    let now = group.leader().await.store().state();
    assert!(["before", "meanwhile", "after"].iter().all(|name| now.image_name(name).is_some()));
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_does_not_go_back_when_the_lead_changes_hands() {
    let mut group = Group::start(3).await;
    let leader = group.leader_index().await;
    create(&group.hosts[leader].store(), "before").await.unwrap();
    let before = group.hosts[leader].store().now();
    group.hosts[leader].stop().await;
    let store = group.leader().await.store();
    create(&store, "after").await.unwrap();
    let state = store.state();
    let made = |name| state.image_name(name).unwrap().meta.created_at;
    assert!(made("after") >= made("before"));
    assert!(store.now() >= before);
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_at_a_follower_sees_changes_and_ends_without_a_leader() {
    let mut group = Group::start(3).await;
    let follower = group.follower_index().await;
    let mut client = WatchClient::new(group.hosts[follower].channel());
    let request = WatchRequest { nodes: true, ..WatchRequest::default() };
    let mut stream = soon("a watch", client.watch(request)).await.unwrap().into_inner();
    let first = soon("the nodes", stream.message()).await.unwrap().unwrap();
    assert!(first.synced && first.events.len() == 3);
    let _new = group.node(9, NodeRole::Worker, skep_identity::Role::Worker).await;
    let next = soon("the new node", stream.message()).await.unwrap().unwrap();
    assert!(!next.events.is_empty());
    for index in (0..3).filter(|index| *index != follower) {
        group.hosts[index].kill();
    }
    let ended = soon("its end", async {
        loop {
            match stream.message().await {
                Ok(Some(_)) => {}
                Ok(None) => panic!("it ended without a reason"),
                Err(status) => return status,
            }
        }
    })
    .await;
    assert_eq!(ended.code(), Code::Unavailable, "{ended:?}");
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiters_at_a_follower_are_woken_by_an_entry_of_another_leader() {
    let mut group = Group::start(3).await;
    let (leader, follower) = (group.leader_index().await, group.follower_index().await);
    let store = group.hosts[follower].store();
    group.hosts[leader].kill();
    let mut any = store.watch(Topic::All);
    let other = (0..3).find(|index| ![leader, follower].contains(index)).unwrap();
    create(&group.hosts[other].store(), "web").await.unwrap();
    soon("it is woken", async {
        while store.state().image_name("web").is_none() {
            any.changed().await;
        }
    })
    .await;
    group.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_recovered_manager_goes_on_alone_and_the_others_are_left_behind() {
    let mut group = Group::start(3).await;
    let left = group.follower_index().await;
    create(&group.hosts[left].store(), "before").await.unwrap();
    let cluster = group.hosts[left].store().state().cluster().unwrap().id;
    for host in &mut group.hosts {
        host.kill();
    }
    group.hosts[left].start_again(ManagerStart::Recover).await;
    soon("it goes on", group.hosts[left].manager().ready()).await.unwrap();
    let store = group.hosts[left].store();
    create(&store, "after").await.unwrap();
    let state = store.state();
    assert!(state.image_name("before").is_some() && state.image_name("after").is_some());
    let now = state.cluster().unwrap();
    assert_eq!((now.id, now.recovery_epoch), (cluster, 1));
    for host in &group.hosts {
        let node = state.node(host.id).unwrap();
        let is_left = host.id == group.hosts[left].id;
        let role = if is_left { NodeRole::Manager } else { NodeRole::Worker };
        assert_eq!((node.spec.role(), node.manager.is_some()), (role, is_left));
    }

    // One of the others comes back: it must not act, and says why.
    let other = (0..3).find(|index| *index != left).unwrap();
    group.hosts[other].restart().await;
    let ended = soon("it is told", group.hosts[other].manager().ended()).await;
    assert!(matches!(ended, Ended::LeftBehind(_)), "{ended:?}");
    // What the recovered one has is not touched, also by its own restart.
    group.hosts[left].stop().await;
    group.hosts[left].restart().await;
    soon("it is back", group.hosts[left].manager().ready()).await.unwrap();
    assert!(group.hosts[left].store().state().image_name("after").is_some());
    group.stop().await;
}
