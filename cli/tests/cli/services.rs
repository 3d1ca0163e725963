//! `service create|scale|rm|logs`: writes, waiting, signals.

use skep_proto::v1::watch_event::Object;
use skep_proto::v1::{
    CreateServiceResponse, LogBatch, LogLine, LogStream, Refusal, RestartCondition, TaskState, UpdatePolicy,
    WatchEvent, WatchResponse,
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::fake::{Fake, Script, change, node, service, task};
use crate::run::{finish, read_until, signal, skep, skep_on_terminal, start};

/// Printed form of the fake service's id.
fn id() -> String {
    skep_proto::id::ServiceId::from_wire(&[9; 16]).unwrap().to_string()
}

fn created() -> Result<CreateServiceResponse, Status> {
    Ok(CreateServiceResponse { id: vec![9; 16], version: 5, warnings: vec!["image has no digest".to_owned()] })
}

fn watched() -> (Script, mpsc::Sender<Result<WatchResponse, Status>>) {
    let (sender, receiver) = mpsc::channel(16);
    let script = Script {
        create: [created()].into(),
        services: vec![service("web", 2)],
        watch: [receiver].into(),
        ..Script::default()
    };
    (script, sender)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_is_retried_with_the_same_id() {
    let fake = Fake::manager(Script {
        create: [Err(Status::unavailable("there is no leader")), created()].into(),
        ..Script::default()
    });
    let run = skep(fake.socket(), &["service", "create", "--detach", "--name", "web", "nginx", "-g", "x"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), format!("{}\n", id()).as_str()), "{run:?}");
    assert_eq!(run.err, "warning: image has no digest\n");
    let script = fake.script.lock().unwrap();
    let ids: Vec<Vec<u8>> = script.created.iter().map(|request| request.write.clone().unwrap().request_id).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!((ids[0].len(), &ids[0]), (16, &ids[1]));
    let template = script.created[0].spec.clone().unwrap().template.unwrap();
    assert_eq!(template.containers[0].args, ["-g", "x"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_result_is_asked_for_again() {
    let fake = Fake::manager(Script {
        create: [Err(Status::deadline_exceeded("result unknown: the write may still happen")), created()].into(),
        ..Script::default()
    });
    let run = skep(fake.socket(), &["service", "create", "--detach", "nginx"]).await;
    assert_eq!((run.code, run.out), (Some(0), format!("{}\n", id())));
    let script = fake.script.lock().unwrap();
    assert_eq!(script.created.len(), 2);
    assert_eq!(script.created[0].write, script.created[1].write);
}

#[tokio::test(flavor = "multi_thread")]
async fn creation_is_followed_until_all_tasks_run() {
    let (script, events) = watched();
    let mut pending = task(1, 1, TaskState::Pending, "");
    pending.task.as_mut().unwrap().status.as_mut().unwrap().refusals =
        vec![Refusal { reason: "insufficient memory".to_owned(), nodes: 3 }];
    let two = task(2, 2, TaskState::Running, "");
    events.try_send(Ok(change(5, true, vec![Object::Service(service("web", 2)), Object::Task(pending)]))).unwrap();
    events.try_send(Ok(change(6, false, vec![Object::Task(two)]))).unwrap();
    let fake = Fake::manager(script);
    let mut child = start(fake.socket(), &["service", "create", "--name", "web", "--replicas", "2", "nginx"]);
    let said = read_until(&mut child, "1 out of 2 tasks").await;
    events.try_send(Ok(change(7, false, vec![Object::Task(task(1, 1, TaskState::Running, ""))]))).unwrap();
    let run = finish(child).await;
    let said = said + &run.err;
    assert_eq!(run.code, Some(0), "{said}");
    assert_eq!(run.out, format!("{}\n", id()));
    assert!(said.contains("web.1: no suitable node (insufficient memory on 3 nodes)"), "{said}");
    let end = "overall progress: 2 out of 2 tasks\nverify: waiting 0.1 seconds to verify that tasks are stable...\n\
               verify: service web converged\n";
    assert!(said.ends_with(end), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quiet_says_nothing_but_waits() {
    let (script, events) = watched();
    let objects = vec![Object::Service(service("web", 1)), Object::Task(task(1, 1, TaskState::Running, ""))];
    events.try_send(Ok(change(5, true, objects))).unwrap();
    let fake = Fake::manager(Script { create: [created()].into(), ..script });
    let run = skep(fake.socket(), &["service", "create", "-q", "nginx"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(0), "warning: image has no digest\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn interrupting_leaves_the_service_alone() {
    let (script, events) = watched();
    events.try_send(Ok(change(5, true, vec![Object::Service(service("web", 2))]))).unwrap();
    let fake = Fake::manager(script);
    let mut child = start(fake.socket(), &["service", "create", "--replicas", "2", "nginx"]);
    read_until(&mut child, "0 out of 2 tasks").await;
    signal(child.id(), libc::SIGINT);
    let run = finish(child).await;
    assert_eq!(run.code, Some(130));
    assert!(run.err.contains("operation continues in the background: `skep service ps web`"), "{}", run.err);
    assert!(fake.script.lock().unwrap().removed.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_service_is_not_waited_for() {
    let (script, events) = watched();
    let removal = WatchEvent { removed: true, object: Some(Object::Service(service("web", 2))) };
    events.try_send(Ok(change(5, true, vec![Object::Service(service("web", 2))]))).unwrap();
    events.try_send(Ok(WatchResponse { version: 6, synced: false, events: vec![removal] })).unwrap();
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["service", "create", "nginx"]).await;
    assert_eq!(run.code, Some(1));
    assert!(run.err.contains("error: service web was removed"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_ends_is_opened_anew() {
    let (mut script, events) = watched();
    events.try_send(Ok(change(5, true, vec![Object::Service(service("web", 1))]))).unwrap();
    drop(events);
    let (again, receiver) = mpsc::channel(4);
    script.watch.push_back(receiver);
    let objects = vec![Object::Service(service("web", 1)), Object::Task(task(1, 1, TaskState::Running, ""))];
    again.try_send(Ok(change(6, true, objects))).unwrap();
    let fake = Fake::manager(script);
    let run = skep(fake.socket(), &["service", "create", "nginx"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert!(run.err.ends_with("verify: service web converged\n"), "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn targets_fail_one_by_one() {
    let fake = Fake::manager(Script { services: vec![service("web", 2)], ..Script::default() });
    let run = skep(fake.socket(), &["service", "scale", "-d", "gone=1", "web=3"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(1), "web scaled to 3\n"));
    assert_eq!(run.err, "error: no such service: gone\n");
    assert_eq!(fake.script.lock().unwrap().scaled[0].replicas, 3);
    let run = skep(fake.socket(), &["service", "rm", "gone", "web"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(1), "web\n", "error: no such service: gone\n"));
    assert_eq!(fake.script.lock().unwrap().removed, ["web"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_replicas_are_refused_before_the_call() {
    let fake = Fake::manager(Script::default());
    let run = skep(fake.socket(), &["service", "scale", "web=100000000"]).await;
    assert_eq!(run.code, Some(64), "{}", run.err);
    assert!(fake.script.lock().unwrap().scaled.is_empty());
}

fn line(stream: LogStream, text: &str) -> LogLine {
    let mut line = LogLine {
        task_id: vec![2; 16],
        node_id: vec![1; 16],
        data: text.as_bytes().to_vec(),
        task_name: "web.1".to_owned(),
        ..LogLine::default()
    };
    line.set_stream(stream);
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_keep_the_streams_apart() {
    let (lines, receiver) = mpsc::channel(4);
    let batch = LogBatch {
        lines: vec![line(LogStream::Stdout, "out\n"), line(LogStream::Stderr, "err\n")],
        warnings: vec!["node host2 is down".to_owned()],
    };
    lines.try_send(Ok(batch)).unwrap();
    drop(lines);
    let fake = Fake::manager(Script {
        services: vec![service("web", 1)],
        nodes: vec![node(1, "host1")],
        logs: Some(receiver),
        ..Script::default()
    });
    let args = ["service", "logs", "--no-task-ids", "--tail", "5", "--since", "1970-01-01T00:00:05Z", "web"];
    let run = skep(fake.socket(), &args).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web.1@host1    | out\n"), "{run:?}");
    assert_eq!(run.err, "warning: node host2 is down\nweb.1@host1    | err\n");
    let request = fake.script.lock().unwrap().log_request.clone().unwrap();
    let options = request.options.unwrap();
    assert_eq!((request.service_id, options.tail, options.since_ns), (vec![9; 16], Some(5), 5_000_000_000));
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_fall_back_to_a_task() {
    let (lines, receiver) = mpsc::channel(4);
    drop(lines);
    let fake = Fake::manager(Script {
        tasks: vec![task(2, 1, TaskState::Running, "")],
        logs: Some(receiver),
        ..Script::default()
    });
    let run = skep(fake.socket(), &["service", "logs", "web.1"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(fake.script.lock().unwrap().log_request.clone().unwrap().task_ids, [vec![2; 16]]);
    let run = skep(fake.socket(), &["service", "logs", "gone"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such service or task: gone\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn following_ends_with_an_interrupt() {
    let (lines, receiver) = mpsc::channel(4);
    lines.try_send(Ok(LogBatch { lines: vec![line(LogStream::Stderr, "first\n")], warnings: Vec::new() })).unwrap();
    let fake = Fake::manager(Script { services: vec![service("web", 1)], logs: Some(receiver), ..Script::default() });
    let mut child = start(fake.socket(), &["service", "logs", "-f", "--raw", "web"]);
    read_until(&mut child, "first").await;
    signal(child.id(), libc::SIGINT);
    let run = finish(child).await;
    assert_eq!(run.code, Some(130));
    drop(lines);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_a_view_that_fits_it() {
    let (script, events) = watched();
    let starting = task(1, 1, TaskState::Starting, "");
    events.try_send(Ok(change(5, true, vec![Object::Service(service("web", 1)), Object::Task(starting)]))).unwrap();
    let later = tokio::spawn(async move {
        // The channel has room for both, but the program sees the second one only after the first.
        events.send(Ok(change(6, false, vec![Object::Task(task(1, 1, TaskState::Running, ""))]))).await.unwrap();
        events
    });
    let fake = Fake::manager(script);
    let (code, screen) = skep_on_terminal(fake.socket(), &["service", "create", "nginx"]).await;
    assert_eq!(code, Some(0), "{screen}");
    assert!(screen.contains("\x1b[2Koverall progress: 1 out of 1 tasks\r\n"), "{screen:?}");
    assert!(screen.contains("\x1b[2K  web.1  running on host1\r\n"), "{screen:?}");
    assert!(screen.ends_with("verify: service web converged\r\n"), "{screen:?}");
    drop(later.await.unwrap());

    let (script, events) = watched();
    let mut objects = vec![Object::Service(service("web", 15))];
    objects.extend((1..=15).map(|slot| Object::Task(task(slot, slot.into(), TaskState::Running, ""))));
    events.try_send(Ok(change(5, true, objects))).unwrap();
    let fake = Fake::manager(script);
    let (code, screen) = skep_on_terminal(fake.socket(), &["service", "create", "nginx"]).await;
    assert_eq!(code, Some(0));
    let views: Vec<&str> = screen.split("\x1b[J").collect();
    assert!(views.len() > 1 && views.iter().all(|view| view.matches("\x1b[2K").count() <= 9), "{screen:?}");
    assert!(screen.contains("\x1b[2Kverify: waiting 0.1 seconds to verify"), "{screen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_that_fails_while_it_is_watched_begins_the_watch_anew() {
    let (script, events) = watched();
    let mut monitored = service("web", 1);
    let spec = monitored.service.as_mut().unwrap().spec.as_mut().unwrap();
    spec.update = Some(UpdatePolicy { monitor_ms: 1_500, ..UpdatePolicy::default() });
    let first = Object::Task(task(1, 1, TaskState::Running, ""));
    events.try_send(Ok(change(5, true, vec![Object::Service(monitored), first]))).unwrap();
    let fake = Fake::manager(script);
    let started = std::time::Instant::now();
    let mut child = start(fake.socket(), &["service", "create", "nginx"]);
    let mut said = read_until(&mut child, "waiting 2 seconds to verify that tasks are stable").await;
    // It crashes and is replaced within one message: all tasks run all the time.
    let (failed, next) = (task(1, 1, TaskState::Failed, "exit code 3"), task(2, 1, TaskState::Running, ""));
    events.try_send(Ok(change(6, false, vec![Object::Task(failed), Object::Task(next)]))).unwrap();
    said += &read_until(&mut child, "waiting 2 seconds to verify that tasks are stable").await;
    let run = finish(child).await;
    said += &run.err;
    assert_eq!(run.code, Some(0), "{said}");
    assert!(said.ends_with("verify: service web converged\n"), "{said}");
    assert!(started.elapsed() >= std::time::Duration::from_millis(1_500));
}

#[tokio::test(flavor = "multi_thread")]
async fn scaling_down_has_nothing_to_watch() {
    let (sender, receiver) = mpsc::channel(4);
    let mut changed = service("web", 1);
    let service_object = changed.service.as_mut().unwrap();
    service_object.meta.as_mut().unwrap().updated_at_ms = 1_000;
    service_object.spec.as_mut().unwrap().update = None;
    let objects = vec![Object::Service(changed), Object::Task(task(1, 1, TaskState::Running, ""))];
    sender.try_send(Ok(change(5, true, objects))).unwrap();
    let fake =
        Fake::manager(Script { services: vec![service("web", 2)], watch: [receiver].into(), ..Script::default() });
    let run = skep(fake.socket(), &["service", "scale", "web=1"]).await;
    assert_eq!(run.code, Some(0), "{}", run.err);
    assert_eq!(run.err, "overall progress: 1 out of 1 tasks\nverify: service web converged\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_are_not_restarted_end_the_wait() {
    for (condition, state, error, code, said) in [
        (
            RestartCondition::Any,
            TaskState::Failed,
            "exit code 3",
            1,
            "error: service web does not run: 1 of 1 tasks ended and are not restarted (web.1: exit code 3)\n",
        ),
        (
            RestartCondition::None,
            TaskState::Complete,
            "",
            0,
            "verify: the tasks of service web have completed and are not restarted\n",
        ),
    ] {
        let (script, events) = watched();
        let mut summary = service("web", 1);
        let template = summary.revision.as_mut().unwrap().template.as_mut().unwrap();
        template.restart.get_or_insert_default().set_condition(condition);
        let objects = vec![Object::Service(summary), Object::Task(task(1, 1, state, error))];
        events.try_send(Ok(change(5, true, objects))).unwrap();
        let fake = Fake::manager(script);
        let run = skep(fake.socket(), &["service", "create", "nginx"]).await;
        assert_eq!(run.code, Some(code), "{}", run.err);
        assert!(run.err.ends_with(said), "{}", run.err);
    }
}
