//! Listings and `inspect`: formats, closed pipes.

use std::io::{BufRead as _, BufReader};

use serde_json::Value;
use skep_proto::v1::{InfoResponse, TaskState};

use crate::fake::{Fake, Script, node, service, task};
use crate::run::{finish, skep, start};

fn two_nodes() -> Fake {
    Fake::manager(Script {
        info: InfoResponse { node_id: vec![2; 16], control_available: true, ..InfoResponse::default() },
        nodes: vec![node(1, "host10"), node(2, "host2")],
        ..Script::default()
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn nodes_in_every_form() {
    let fake = two_nodes();
    let run = skep(fake.socket(), &["node", "ls"]).await;
    let lines: Vec<&str> = run.out.lines().collect();
    assert!(lines[0].starts_with("ID  "), "{}", run.out);
    assert!(lines[1].contains(" *   host2 ") && lines[2].contains("     host10 "), "{}", run.out);

    let run = skep(fake.socket(), &["node", "ls", "--format", "json"]).await;
    let rows: Vec<Value> = run.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[0]["Hostname"], "host2");
    assert_eq!((&rows[0]["Self"], &rows[0]["Status"]), (&Value::Bool(true), &Value::from("Ready")));
    assert_eq!((&rows[0]["Availability"], &rows[0]["ManagerStatus"]), (&Value::from("Active"), &Value::from("")));

    let run = skep(fake.socket(), &["node", "ls", "--format", "{{.Hostname}}={{lower .Status}}"]).await;
    assert_eq!(run.out, "host2=ready\nhost10=ready\n");
    let run = skep(fake.socket(), &["node", "ls", "--filter", "name=host1", "-q"]).await;
    assert_eq!(run.out.trim().len(), 25);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_leaves_is_no_error() {
    let nodes = (0..20_000u32).map(|index| node(index as u8, &format!("host{index}"))).collect();
    let fake = Fake::manager(Script { nodes, ..Script::default() });
    let mut child = start(fake.socket(), &["node", "ls"]);
    let out = child.stdout.take().unwrap();
    tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        BufReader::with_capacity(64, out).read_line(&mut line).unwrap();
        assert!(line.starts_with("ID"));
    })
    .await
    .unwrap();
    let run = finish(child).await;
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_prints_what_it_finds() {
    let fake = Fake::manager(Script { services: vec![service("web", 3)], ..Script::default() });
    let run = skep(fake.socket(), &["service", "inspect", "gone", "web"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such service: gone\n"));
    let found: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(found[0]["Spec"]["Name"], "web");
    assert_eq!(found[0]["Spec"]["Mode"]["Replicated"]["Replicas"], 3);
    assert_eq!(found[0]["Version"]["Index"], 4);
    assert_eq!(found[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["Image"], "nginx:1");
    assert_eq!(found[0]["Spec"]["TaskTemplate"]["ContainerSpec"]["StopGracePeriod"], 10_000_000_000u64);
    assert!(run.out.starts_with("[\n    {\n        \"ID\": \""), "{}", run.out);

    let run = skep(fake.socket(), &["service", "inspect", "-f", "{{.Spec.Name}} {{json .Spec.Mode}}", "web"]).await;
    assert_eq!(run.out, "web {\"Replicated\":{\"Replicas\":3}}\n");
    let run = skep(fake.socket(), &["service", "inspect", "gone"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), "[]\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_show_why_they_do_not_run() {
    let fake = Fake::manager(Script {
        services: vec![service("web", 1)],
        nodes: vec![node(1, "host1")],
        tasks: vec![task(1, 1, TaskState::Rejected, "no such image: nginx:1"), task(2, 1, TaskState::Running, "")],
        ..Script::default()
    });
    for args in [&["service", "ps", "web"][..], &["node", "ps", "host1"], &["task", "ls"]] {
        let run = skep(fake.socket(), args).await;
        let lines: Vec<&str> = run.out.lines().collect();
        assert_eq!((run.code, lines.len()), (Some(0), 3), "{args:?} {run:?}");
        assert!(lines[1].contains("web.1") && lines[1].contains("Running"), "{}", run.out);
        assert!(lines[2].contains(" \\_ web.1") && lines[2].contains("\"no such image: nginx:1\""), "{}", run.out);
    }
    let run = skep(fake.socket(), &["task", "inspect", "-f", "{{.Status.State}}: {{.Status.Err}}", "web.1"]).await;
    assert_eq!(run.out, "rejected: no such image: nginx:1\n");
    let run = skep(fake.socket(), &["service", "ps", "-q", "--filter", "desired-state=running", "web"]).await;
    assert_eq!(run.out.lines().count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_are_listed() {
    let fake = Fake::manager(Script { services: vec![service("web", 3), service("db", 1)], ..Script::default() });
    let run = skep(fake.socket(), &["service", "ls", "--format", "{{.Name}} {{.Replicas}} {{.Image}}"]).await;
    assert_eq!(run.out, "db 0/1 nginx:1\nweb 0/3 nginx:1\n");
    let run = skep(fake.socket(), &["service", "ls", "--filter", "name=we", "--format", "table {{.Name}}"]).await;
    assert_eq!(run.out, "NAME\nweb\n");
}
