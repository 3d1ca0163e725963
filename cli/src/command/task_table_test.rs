//! Task tables against Docker's.

#![allow(clippy::unwrap_used)]
use skep_proto::v1::{Meta, Refusal, Task, TaskState, TaskStatus, TaskSummary, WantedState};

use super::*;

fn task(slot: u64, created: i64, wanted: WantedState, state: TaskState, error: &str) -> TaskSummary {
    let mut status = TaskStatus { since_ms: 1_000, error: error.to_owned(), ..TaskStatus::default() };
    status.set_state(state);
    let mut task = Task {
        id: vec![u8::try_from(created).unwrap(); 16],
        meta: Some(Meta { created_at_ms: created, ..Meta::default() }),
        slot,
        status: Some(status),
        ..Task::default()
    };
    task.set_wanted(wanted);
    TaskSummary {
        task: Some(task),
        service_name: "web".to_owned(),
        node_hostname: "host1".to_owned(),
        image: "nginx:1@sha256:abc".to_owned(),
    }
}

fn prepared(format: Option<&str>, no_trunc: bool, filter: &[&str]) -> Prepared {
    let flags = TaskFlags {
        list: ListFlags {
            filter: filter.iter().map(|text| (*text).to_owned()).collect(),
            format: format.map(str::to_owned),
            quiet: false,
        },
        trunc: TruncFlag { no_trunc },
        no_resolve: false,
    };
    flags.prepare(&["id", "name", "node", "desired-state"]).unwrap()
}

fn history() -> Vec<TaskSummary> {
    vec![
        task(10, 5, WantedState::Running, TaskState::Running, ""),
        task(2, 1, WantedState::Shutdown, TaskState::Failed, "the process ended with exit code 137: killed"),
        task(2, 3, WantedState::Running, TaskState::Running, ""),
    ]
}

fn table(prepared: &Prepared, tasks: Vec<TaskSummary>) -> String {
    TASKS.render(&prepared.rows(tasks, 61_000), &prepared.format).unwrap()
}

#[test]
fn history_is_indented_below_its_slot() {
    let text = table(&prepared(None, false, &[]), history());
    let lines: Vec<&str> = text.lines().collect();
    assert!(
        lines[0].starts_with("ID             NAME        IMAGE     NODE      DESIRED STATE   CURRENT STATE"),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].contains("   web.2       nginx:1   host1     Running         Running about a minute ago"),
        "{}",
        lines[1]
    );
    assert!(
        lines[2].contains("    \\_ web.2   nginx:1   host1     Shutdown        Failed about a minute ago"),
        "{}",
        lines[2]
    );
    assert!(lines[2].contains("\"the process ended with exit c…\""), "{}", lines[2]);
    assert!(lines[3].contains("   web.10 "), "{}", lines[3]);
    assert_eq!(lines.len(), 4);
}

#[test]
fn nothing_is_shortened_when_asked() {
    let text = table(&prepared(None, true, &[]), history());
    assert!(text.contains("exit code 137: killed\""));
    assert!(text.contains("nginx:1@sha256:abc"));
}

#[test]
fn json_has_no_indentation() {
    let text = table(&prepared(Some("json"), false, &[]), history());
    for line in text.lines() {
        let row: Value = serde_json::from_str(line).unwrap();
        assert!(row["Name"].as_str().unwrap().starts_with("web."));
        assert_eq!(row["ID"].as_str().unwrap().len(), 25);
    }
}

#[test]
fn filters_select() {
    assert_eq!(prepared(None, false, &["desired-state=running"]).rows(history(), 0).len(), 2);
    assert_eq!(prepared(None, false, &["name=web.10"]).rows(history(), 0).len(), 1);
    assert_eq!(prepared(None, false, &["node=host2"]).rows(history(), 0).len(), 0);
    assert!(prepared(None, false, &["node=host1", "name=web.2"]).rows(history(), 0).len() == 2);
}

#[test]
fn refusals_carry_counts() {
    let mut status = TaskStatus {
        refusals: vec![
            Refusal { reason: "insufficient memory".to_owned(), nodes: 3 },
            Refusal { reason: "not ready".to_owned(), nodes: 1 },
        ],
        ..TaskStatus::default()
    };
    status.set_state(TaskState::Pending);
    assert_eq!(reason(&status), "no suitable node (insufficient memory on 3 nodes; not ready on 1 node)");
}

#[test]
fn digests_go_only_where_a_tag_says_enough() {
    assert_eq!(without_digest("nginx:1@sha256:ab"), "nginx:1");
    assert_eq!(without_digest("nginx@sha256:ab"), "nginx@sha256:ab");
    assert_eq!(without_digest("nginx"), "nginx");
}
