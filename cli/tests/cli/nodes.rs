//! `node update|promote|demote|rm`, and reads without a leader.

use skep_proto::v1::{Availability, ManagerStatus, Meta, Node, NodeRole};
use tonic::Status;

use crate::fake::{Fake, Script, node};
use crate::run::skep;

fn at_version(version: u64, mut node: Node) -> Node {
    node.meta = Some(Meta { version, ..Meta::default() });
    node
}

fn nodes() -> Script {
    let mut manager = at_version(3, node(1, "host1"));
    manager.spec.get_or_insert_default().set_role(NodeRole::Manager);
    manager.spec.get_or_insert_default().labels.insert("zone".to_owned(), "a".to_owned());
    manager.manager = Some(ManagerStatus { reachable: true, ..ManagerStatus::default() });
    Script { nodes: vec![manager, at_version(4, node(2, "host2"))], ..Script::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_changes_what_is_named() {
    let fake = Fake::manager(nodes());
    let args = ["node", "update", "--availability", "drain", "--label-rm", "zone", "--label-add", "disk=ssd", "host1"];
    let run = skep(fake.socket(), &args).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "host1\n"), "{}", run.err);
    let request = fake.script.lock().unwrap().nodes_updated[0].clone();
    let spec = request.spec.unwrap();
    assert_eq!((spec.availability(), spec.role()), (Availability::Drain, NodeRole::Manager));
    assert_eq!(spec.labels, [("disk".to_owned(), "ssd".to_owned())].into());
    assert_eq!((request.reference.as_str(), request.expect_version), ("host1", 3));
    let run = skep(fake.socket(), &["node", "update", "--label-rm", "gone", "host2"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: node host2 has no label gone\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_in_between_is_read_and_tried_again() {
    let fake =
        Fake::manager(Script { node_update: [Err(Status::aborted("node host2 changed meanwhile"))].into(), ..nodes() });
    let run = skep(fake.socket(), &["node", "update", "--role", "manager", "host2"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    let script = fake.script.lock().unwrap();
    assert_eq!(script.nodes_updated.len(), 2);
    assert_ne!(script.nodes_updated[0].write, script.nodes_updated[1].write);
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_can_be_read_by_a_person() {
    let fake = Fake::manager(nodes());
    let run = skep(fake.socket(), &["node", "inspect", "--pretty", "host1", "gone", "host2"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such node: gone\n"));
    for part in
        ["Labels:\n - zone=a\nHostname:               host1\n", " Raft Status:           Reachable\n", "\n\nID: "]
    {
        assert!(run.out.contains(part), "{part:?}: {}", run.out);
    }
    assert_eq!(skep(fake.socket(), &["node", "inspect", "--pretty", "-f", "json", "host1"]).await.code, Some(64));
}

#[tokio::test(flavor = "multi_thread")]
async fn roles_in_dockers_words() {
    let fake = Fake::manager(nodes());
    let run = skep(fake.socket(), &["node", "promote", "host2", "gone", "host1"]).await;
    assert_eq!(run.code, Some(1));
    assert_eq!(run.out, "Node host2 promoted to a manager in the swarm.\nNode host1 is already a manager.\n");
    assert_eq!(run.err, "error: no such node: gone\n");
    let run = skep(fake.socket(), &["node", "demote", "host1", "host2"]).await;
    assert_eq!(run.out, "Manager host1 demoted in the swarm.\nNode host2 is already a worker.\n");
    assert_eq!(fake.script.lock().unwrap().nodes_updated.len(), 2);
    let run = skep(fake.socket(), &["node", "ls", "--format", "{{.Hostname}}:{{.ManagerStatus}}"]).await;
    assert_eq!(run.out, "host1:Reachable\nhost2:\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn removals_are_answered_one_by_one() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["node", "rm", "up", "down"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), "down\n"));
    assert!(run.err.starts_with("error: node up is not down"), "{}", run.err);
    let run = skep(fake.socket(), &["node", "rm", "--force", "up"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "up\n"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_a_leader_unless_stale_ones_do() {
    let fake = Fake::manager(Script { leaderless_reads: 2, ..nodes() });
    let run = skep(fake.socket(), &["node", "ls", "-q"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
    assert_eq!(fake.script.lock().unwrap().leaderless_reads, 0);
    fake.script.lock().unwrap().leaderless_reads = u32::MAX;
    let run = skep(fake.socket(), &["node", "ls", "-q", "--allow-stale"]).await;
    assert_eq!((run.code, run.out.lines().count()), (Some(0), 2), "{}", run.err);
}
