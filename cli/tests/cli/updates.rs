//! `service update|rollback|history|inspect --pretty`: what is sent, and what is said until the roll-out is over.

use serde_json::Value;
use skep_proto::v1::watch_event::Object;
use skep_proto::v1::{
    HealthState, RevisionSummary, ServiceSummary, TaskState, TaskSummary, UpdateServiceResponse, UpdateState,
    UpdateStatus, WatchResponse,
};
use tokio::sync::mpsc;
use tonic::Status;

use crate::fake::{Fake, Script, change, service, task};
use crate::run::{Run, finish, read_until, skep, start};

type Events = mpsc::Sender<Result<WatchResponse, Status>>;

fn updated() -> Result<UpdateServiceResponse, Status> {
    Ok(UpdateServiceResponse { id: vec![9; 16], version: 5, warnings: Vec::new(), revision: 2 })
}

fn watched() -> (Script, Events) {
    let (sender, receiver) = mpsc::channel(16);
    let script = Script {
        update: [updated()].into(),
        services: vec![service("web", 2)],
        watch: [receiver].into(),
        ..Script::default()
    };
    (script, sender)
}

/// The service at revision 2, in a state of its roll-out.
fn rolling(state: UpdateState) -> Object {
    let mut summary: ServiceSummary = service("web", 2);
    let service = summary.service.as_mut().unwrap();
    service.revision = 2;
    let mut update =
        UpdateStatus { message: "update paused because task web.1 failed".to_owned(), ..Default::default() };
    update.set_state(state);
    service.update = Some(update);
    Object::Service(summary)
}

fn running(id: u8, slot: u64, revision: u64) -> Object {
    let mut summary: TaskSummary = task(id, slot, TaskState::Running, "");
    summary.task.as_mut().unwrap().revision = revision;
    Object::Task(summary)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_sends_the_whole_spec_and_follows_the_roll_out() {
    let (script, events) = watched();
    events
        .try_send(Ok(change(5, true, vec![rolling(UpdateState::Updating), running(1, 1, 1), running(2, 2, 1)])))
        .unwrap();
    let fake = Fake::manager(script);
    let args = ["service", "update", "--image", "nginx:2", "--env-add", "A=b", "--label-rm", "gone", "web"];
    let mut child = start(fake.socket(), &args);
    let said = read_until(&mut child, "0 out of 2 tasks").await;
    assert!(said.starts_with("warning: --label-rm gone: the service does not have it\n"), "{said}");
    events.try_send(Ok(change(6, false, vec![running(3, 1, 2)]))).unwrap();
    let mut said = read_until(&mut child, "1 out of 2 tasks").await;
    events.try_send(Ok(change(7, false, vec![running(4, 2, 2), rolling(UpdateState::Completed)]))).unwrap();
    let run = finish(child).await;
    said.push_str(&run.err);
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web\n"), "{said}");
    assert!(said.ends_with("overall progress: 2 out of 2 tasks\nverify: service web converged\n"), "{said}");
    let request = fake.script.lock().unwrap().updated[0].clone();
    let spec = request.spec.unwrap();
    assert_eq!((spec.name.as_str(), request.expect_version, request.store_auth), ("web", 4, false));
    let container = spec.template.unwrap().containers[0].clone();
    assert_eq!((container.image.as_str(), container.env.as_slice()), ("nginx:2", &["A=b".to_owned()][..]));
}

/// Updates with `--force` while the service says `state` of its roll-out.
async fn with_state(state: UpdateState) -> Run {
    let (script, events) = watched();
    events.try_send(Ok(change(5, true, vec![rolling(state), running(1, 1, 2), running(2, 2, 2)]))).unwrap();
    let fake = Fake::manager(script);
    skep(fake.socket(), &["service", "update", "--force", "web"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn updates_that_fail_end_with_1() {
    for (state, text) in [
        (UpdateState::Paused, "error: service update paused: update paused because task web.1 failed\n"),
        (UpdateState::RollbackPaused, "error: service rollback paused: "),
        (UpdateState::RollbackCompleted, "error: service rolled back: "),
    ] {
        let run = with_state(state).await;
        assert_eq!((run.code, run.out.as_str()), (Some(1), "web\n"), "{state:?}");
        assert!(run.err.contains(text), "{state:?}: {}", run.err);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_update_meets_another_one() {
    let aborted = Err(Status::aborted("service web changed meanwhile"));
    let fake = Fake::manager(Script {
        update: [aborted.clone(), Err(Status::unavailable("there is no leader")), updated()].into(),
        services: vec![service("web", 2)],
        ..Script::default()
    });
    let run = skep(fake.socket(), &["service", "update", "-d", "--replicas", "3", "web"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web\n"), "{}", run.err);
    let ids: Vec<_> = fake.script.lock().unwrap().updated.iter().map(|request| request.write.clone()).collect();
    assert_eq!(ids.len(), 3);
    assert!(ids[0] != ids[1] && ids[1] == ids[2], "a new edit is a new write, a retry is not");
    let fake =
        Fake::manager(Script { update: [aborted].into(), services: vec![service("web", 2)], ..Script::default() });
    let run = skep(fake.socket(), &["service", "update", "-d", "--replicas", "3", "web"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: service web changed meanwhile\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_concerns_no_task_is_not_waited_for() {
    let same = UpdateServiceResponse { revision: 1, ..updated().unwrap() };
    let fake =
        Fake::manager(Script { update: [Ok(same)].into(), services: vec![service("web", 2)], ..Script::default() });
    let run = skep(fake.socket(), &["service", "update", "--label-add", "a=b", "web"]).await;
    assert_eq!((run.code, run.out.as_str(), run.err.as_str()), (Some(0), "web\n", ""));
}

#[tokio::test(flavor = "multi_thread")]
async fn rollbacks() {
    let (script, events) = watched();
    let objects = vec![rolling(UpdateState::RollbackStarted), running(1, 1, 2), running(2, 2, 1)];
    events.try_send(Ok(change(5, true, objects))).unwrap();
    let fake = Fake::manager(script);
    let mut child = start(fake.socket(), &["service", "rollback", "--to", "1", "web"]);
    read_until(&mut child, "rolling back update: 1 out of 2 tasks").await;
    events.try_send(Ok(change(6, false, vec![rolling(UpdateState::RollbackCompleted), running(2, 2, 2)]))).unwrap();
    let run = finish(child).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web\n"), "{}", run.err);
    let run = skep(fake.socket(), &["service", "update", "--rollback", "-d", "web"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "web\n"), "{}", run.err);
    let targets: Vec<u64> = fake.script.lock().unwrap().rolled_back.iter().map(|request| request.to_revision).collect();
    assert_eq!(targets, [1, 0]);
    let run = skep(fake.socket(), &["service", "rollback", "gone"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such service: gone\n"));
    let run = skep(fake.socket(), &["service", "rollback", "--to", "99", "web"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: service web has no revision 99\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn history_lists_revisions() {
    let revision = |number, copied_from, current| {
        let revision = service("web", 1).revision.unwrap();
        let revision = skep_proto::v1::Revision { number, copied_from, ..revision };
        RevisionSummary { revision: Some(revision), running: 1, current }
    };
    let history = vec![revision(3, 1, true), revision(1, 0, false)];
    let fake = Fake::manager(Script { services: vec![service("web", 1)], history, ..Script::default() });
    let format = "{{.Revision}} {{.Image}} {{.CopiedFrom}}{{.Current}}";
    let run = skep(fake.socket(), &["service", "history", "--format", format, "web"]).await;
    assert_eq!((run.code, run.out.as_str()), (Some(0), "3 nginx:1 1*\n1 nginx:1 \n"), "{}", run.err);
    let run = skep(fake.socket(), &["service", "history", "-q", "web"]).await;
    assert_eq!(run.out, "3\n1\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn inspect_shows_the_roll_out_and_health() {
    let Object::Service(summary) = rolling(UpdateState::Paused) else { unreachable!() };
    let mut unhealthy = task(1, 1, TaskState::Starting, "");
    let mut container = skep_proto::v1::ContainerStatus { failing_streak: 2, ..Default::default() };
    container.set_health(HealthState::Unhealthy);
    unhealthy.task.as_mut().unwrap().status.as_mut().unwrap().containers = vec![container];
    let fake = Fake::manager(Script { services: vec![summary], tasks: vec![unhealthy], ..Script::default() });
    let run = skep(fake.socket(), &["service", "inspect", "web"]).await;
    let found: Value = serde_json::from_str(&run.out).unwrap();
    assert_eq!(found[0]["UpdateStatus"]["State"], "paused");
    let run = skep(fake.socket(), &["service", "inspect", "--pretty", "web", "gone"]).await;
    assert_eq!((run.code, run.err.as_str()), (Some(1), "error: no such service: gone\n"));
    assert!(run.out.contains("UpdateStatus:\n State:             paused\n"), "{}", run.out);
    let format = "{{.Status.ContainerStatus.Health.Status}} {{.Status.ContainerStatus.Health.FailingStreak}}";
    let run = skep(fake.socket(), &["task", "inspect", "-f", format, "web.1"]).await;
    assert_eq!(run.out, "unhealthy 2\n", "{}", run.err);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_update_does_not_find_is_named() {
    for (found, said) in [
        ("network back not found: see `skep network ls`", "network back not found: see `skep network ls`"),
        ("no service \"a1\": give its id", "no such service: web"),
    ] {
        let (mut script, _events) = watched();
        script.update = [Err(Status::not_found(found))].into();
        let fake = Fake::manager(script);
        let run = skep(fake.socket(), &["service", "update", "--detach", "--replicas", "3", "web"]).await;
        assert_eq!((run.code, run.err), (Some(1), format!("error: {said}\n")));
    }
}
