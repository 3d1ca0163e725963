//! Tests of a task's life: examples. Properties over random events are in `task_model_test.rs`.

#![allow(clippy::unwrap_used)]

use skep_proto::v1::{ContainerSpec, HealthCheck};

use super::*;
use crate::executor::{Found, FoundTask};

fn template(containers: &[(&str, bool, &[&str])]) -> TaskTemplate {
    TaskTemplate {
        containers: containers
            .iter()
            .map(|(name, optional, depends_on)| ContainerSpec {
                name: (*name).to_owned(),
                optional: *optional,
                depends_on: depends_on.iter().map(|name| (*name).to_owned()).collect(),
                ..ContainerSpec::default()
            })
            .collect(),
        ..TaskTemplate::default()
    }
}

fn single() -> TaskTemplate {
    template(&[("main", false, &[])])
}

fn started(pid: u32) -> Started {
    Started { pid, container_id: format!("c{pid}"), started_at_ms: 1, check: None }
}

/// `started`, of a container that has a check if its spec says so.
fn started_with(template: &TaskTemplate, position: usize) -> Started {
    let check = template.containers[position].health_check.as_ref();
    let check = Check::resolve(check, &skep_image::RunConfig::default()).unwrap().map(Arc::new);
    Started { check, ..started(100 + position as u32) }
}

fn checked() -> TaskTemplate {
    let mut template = single();
    template.containers[0].health_check = Some(check());
    template
}

fn check() -> HealthCheck {
    HealthCheck { test: vec!["CMD".into(), "probe".into()], retries: 2, ..HealthCheck::default() }
}

fn outcome(result: CheckResult) -> Event {
    let second = Duration::from_secs(1);
    Event::Checked(0, Checked { waited: second, took: second, result })
}

fn exit(code: i32) -> ContainerExit {
    ContainerExit { code, finished_at_ms: 9, ..ContainerExit::default() }
}

fn running(template: &TaskTemplate) -> Life {
    let mut life = Life::new(template, 0);
    assert_eq!(life.step(WantedState::Running, 1), [Action::Prepare]);
    life.on(Event::Prepared(Ok(Prepared::default())), 2);
    loop {
        let actions = life.step(WantedState::Running, 3);
        if actions.is_empty() {
            break life;
        }
        for action in actions {
            if let Action::Start(position) = action {
                life.on(Event::Started(position, Ok(started_with(template, position))), 4);
            }
        }
    }
}

#[test]
fn a_life_from_accepted_to_complete() {
    let mut life = running(&single());
    assert_eq!(life.state(), TaskState::Running);
    assert_eq!(life.status().containers[0].pid, 100);
    life.on(Event::Exited(0, exit(0)), 5);
    assert_eq!(life.step(WantedState::Running, 5), [Action::Remove]);
    assert_eq!(life.state(), TaskState::Complete);
    assert!(!life.is_over());
    life.on(Event::Removed, 6);
    assert!(life.step(WantedState::Running, 6).is_empty() && life.is_over());
}

/// One that is published, with its container started.
fn started_and_published(template: &TaskTemplate) -> Life {
    let mut life = Life::new(template, 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared { published: true })), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Start(0)]);
    life.on(Event::Started(0, Ok(started_with(template, 0))), 0);
    life
}

#[test]
fn a_published_task_runs_when_it_listens() {
    let mut life = started_and_published(&single());
    assert_eq!(life.step(WantedState::Running, 1), [Action::Watch(0), Action::Listen]);
    assert_eq!(life.status().message, "waiting until it listens on its published ports");
    assert!(life.step(WantedState::Running, 2).is_empty());
    assert_eq!(life.state(), TaskState::Starting);
    life.on(Event::Listening(Ok(())), 3);
    assert!(life.step(WantedState::Running, 3).is_empty());
    assert_eq!((life.state(), life.status().message.as_str()), (TaskState::Running, "started"));
}

#[test]
fn a_published_task_that_does_not_listen_runs_and_says_so() {
    let mut life = started_and_published(&single());
    life.step(WantedState::Running, 1);
    life.on(Event::Listening(Err("it is deaf".into())), 2);
    life.step(WantedState::Running, 2);
    assert_eq!((life.state(), life.status().message.as_str()), (TaskState::Running, "started; it is deaf"));
}

#[test]
fn a_published_task_that_ends_before_it_listens_ends() {
    let mut life = started_and_published(&single());
    life.step(WantedState::Running, 1);
    life.on(Event::Exited(0, exit(3)), 2);
    assert_eq!(life.step(WantedState::Running, 2), [Action::Remove]);
    life.on(Event::Listening(Ok(())), 3);
    assert!(life.step(WantedState::Running, 3).is_empty());
    assert_eq!(life.state(), TaskState::Failed);
}

#[test]
fn a_health_check_tells_of_a_published_task() {
    let mut life = started_and_published(&checked());
    assert_eq!(life.step(WantedState::Running, 1), [Action::Watch(0), Action::Check(0)]);
    life.on(outcome(CheckResult::Passed), 2);
    life.step(WantedState::Running, 2);
    assert_eq!(life.state(), TaskState::Running);
}

#[test]
fn ready_is_the_pause_point() {
    let mut life = Life::new(&single(), 0);
    life.step(WantedState::Ready, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    assert!(life.step(WantedState::Ready, 0).is_empty());
    assert_eq!(life.state(), TaskState::Ready);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Start(0)]);
    assert_eq!(life.state(), TaskState::Starting);
}

#[test]
fn errors_before_starting_reject_and_after_it_fail() {
    let mut life = Life::new(&single(), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Err("no such image".into())), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Remove]);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Rejected, "no such image"));

    let mut life = Life::new(&single(), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Started(0, Err(("exec: \"x\": not found".into(), 127))), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Remove]);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Failed, "exec: \"x\": not found"));
}

#[test]
fn exit_codes_and_out_of_memory_are_told() {
    let mut life = running(&single());
    life.on(Event::Exited(0, exit(1)), 0);
    life.step(WantedState::Running, 0);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Failed, "task: non-zero exit (1)"));
    let mut life = running(&single());
    life.on(Event::Exited(0, ContainerExit { oom_killed: true, ..exit(137) }), 0);
    life.step(WantedState::Running, 0);
    assert!(life.status().error.contains("non-zero exit (137): out of memory"));
}

#[test]
fn a_stop_cancels_preparation_and_is_no_error() {
    let mut life = Life::new(&single(), 0);
    life.step(WantedState::Running, 0);
    assert_eq!(life.step(WantedState::Shutdown, 0), [Action::CancelPrepare, Action::Remove]);
    assert_eq!(life.state(), TaskState::Shutdown);
    // The event of the dropped preparation, had it been on its way, changes nothing.
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    assert_eq!(life.state(), TaskState::Shutdown);
    assert!(life.status().error.is_empty());
}

#[test]
fn a_stop_while_starting_waits_for_the_start() {
    let mut life = Life::new(&single(), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Start(0)]);
    assert!(life.step(WantedState::Remove, 0).is_empty());
    life.on(Event::Started(0, Ok(started(7))), 0);
    assert_eq!(life.step(WantedState::Remove, 0), [Action::Watch(0), Action::Stop(0)]);
    life.on(Event::Exited(0, exit(143)), 0);
    assert_eq!(life.step(WantedState::Remove, 0), [Action::Remove]);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Shutdown, ""));
}

#[test]
fn containers_start_in_order_and_stop_in_reverse() {
    let template = template(&[("web", false, &["db"]), ("db", false, &[])]);
    let mut life = Life::new(&template, 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Start(1)]);
    life.on(Event::Started(1, Ok(started(2))), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Watch(1), Action::Start(0)]);
    life.on(Event::Started(0, Ok(started(1))), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Watch(0)]);
    assert_eq!(life.state(), TaskState::Running);
    assert_eq!(life.step(WantedState::Shutdown, 0), [Action::Stop(0)]);
    life.on(Event::Exited(0, exit(0)), 0);
    assert_eq!(life.step(WantedState::Shutdown, 0), [Action::Stop(1)]);
}

#[test]
fn an_essential_end_stops_the_others_and_an_optional_one_does_not() {
    let template = template(&[("web", false, &[]), ("side", true, &[])]);
    let mut life = running(&template);
    life.on(Event::Exited(1, exit(3)), 0);
    assert!(life.step(WantedState::Running, 0).is_empty());
    assert_eq!(life.state(), TaskState::Running);

    let mut life = running(&template);
    life.on(Event::Exited(0, exit(3)), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Stop(1)]);
    assert_eq!(life.state(), TaskState::Running);
    life.on(Event::Exited(1, exit(0)), 0);
    life.step(WantedState::Running, 0);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Failed, "container web: non-zero exit (3)"));
}

#[test]
fn bad_dependencies_are_errors_not_hangs() {
    let mut life = Life::new(&template(&[("a", false, &["nope"])]), 0);
    life.step(WantedState::Running, 0);
    assert_eq!(life.state(), TaskState::Rejected);
    assert_eq!(life.status().error, "container a depends on nope, which the task does not have");
    let mut life = Life::new(&template(&[("a", false, &["b"]), ("b", false, &["a"])]), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    life.step(WantedState::Running, 0);
    assert_eq!(
        (life.state(), life.status().error.as_str()),
        (TaskState::Failed, "containers depend on each other in a circle")
    );
    let mut life = Life::new(&template(&[("a", false, &["b"]), ("b", true, &[])]), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    assert_eq!(life.step(WantedState::Running, 0), [Action::Start(1)]);
    life.on(Event::Started(1, Err(("x".into(), 125))), 0);
    life.step(WantedState::Running, 0);
    assert_eq!(life.status().error, "container a cannot start: it depends on b, which did not start");
}

#[test]
fn adopting_a_running_task_keeps_its_pid() {
    let recorded = running(&single()).status();
    let found = FoundTask::from([("main".to_owned(), Found::Running(started(100)))]);
    let mut life = Life::adopt(&single(), &recorded, &found, true, 50);
    assert_eq!(life.step(WantedState::Running, 50), [Action::Watch(0)]);
    assert_eq!(life.status(), recorded);
}

#[test]
fn a_record_that_lags_is_overtaken_by_what_is_found() {
    let recorded = Life::new(&single(), 0).status();
    let found = FoundTask::from([("main".to_owned(), Found::Running(started(5)))]);
    let mut life = Life::adopt(&single(), &recorded, &found, true, 50);
    assert_eq!(life.step(WantedState::Running, 50), [Action::Watch(0)]);
    assert_eq!((life.state(), life.status().containers[0].pid), (TaskState::Running, 5));

    let found = FoundTask::from([("main".to_owned(), Found::Exited(Some(started(5)), exit(4)))]);
    let mut life = Life::adopt(&single(), &recorded, &found, true, 50);
    life.step(WantedState::Running, 50);
    assert_eq!((life.state(), life.status().containers[0].exit_code), (TaskState::Failed, 4));
}

#[test]
fn after_a_reboot_what_ran_has_failed_and_what_had_not_started_goes_on() {
    let mut life = Life::adopt(&single(), &running(&single()).status(), &FoundTask::new(), false, 50);
    life.step(WantedState::Running, 50);
    assert_eq!((life.state(), life.status().error.as_str()), (TaskState::Failed, "host rebooted"));
    assert!(life.status().host_lost);
    let again = Life::adopt(&single(), &life.status(), &FoundTask::new(), true, 60);
    assert_eq!(again.status(), life.status(), "an end is remembered as it was");
    assert_eq!(life.status().containers[0].state(), ContainerState::Lost);

    let mut ready = Life::new(&single(), 0);
    ready.step(WantedState::Ready, 0);
    ready.on(Event::Prepared(Ok(Prepared::default())), 0);
    ready.step(WantedState::Ready, 0);
    let mut life = Life::adopt(&single(), &ready.status(), &FoundTask::new(), false, 50);
    assert_eq!(life.step(WantedState::Running, 50), [Action::Prepare]);
    assert_eq!(life.state(), TaskState::Ready);
    life.on(Event::Prepared(Ok(Prepared::default())), 51);
    assert_eq!(life.step(WantedState::Running, 51), [Action::Start(0)]);
}

#[test]
fn a_dead_monitor_is_no_lost_host() {
    let mut life = Life::adopt(&single(), &running(&single()).status(), &FoundTask::new(), true, 50);
    life.step(WantedState::Running, 50);
    assert_eq!(life.state(), TaskState::Failed);
    assert!(!life.status().host_lost);
}

#[test]
fn running_means_healthy() {
    let mut life = running(&checked());
    assert_eq!(life.state(), TaskState::Starting);
    assert_eq!(life.status().containers[0].health(), HealthState::Starting);
    assert_eq!(life.status().message, "waiting for the health check to pass");
    life.on(outcome(CheckResult::Failed("not yet".into())), 5);
    assert_eq!(life.step(WantedState::Running, 5), [Action::Check(0)]);
    assert_eq!((life.state(), life.status().containers[0].failing_streak), (TaskState::Starting, 1));
    life.on(outcome(CheckResult::Passed), 6);
    assert_eq!(life.step(WantedState::Running, 6), [Action::Check(0)]);
    let status = life.status();
    assert_eq!((status.state(), status.containers[0].health()), (TaskState::Running, HealthState::Healthy));
    assert_eq!((status.containers[0].failing_streak, &*status.containers[0].health_output), (0, "not yet"));
}

#[test]
fn an_unhealthy_container_ends_its_task_and_is_stopped() {
    let mut life = running(&checked());
    life.on(outcome(CheckResult::Failed("no answer".into())), 5);
    life.step(WantedState::Running, 5);
    life.on(outcome(CheckResult::Failed("no\nanswer".into())), 6);
    assert_eq!(life.step(WantedState::Running, 6), [Action::Stop(0)]);
    life.on(Event::Exited(0, exit(143)), 7);
    assert_eq!(life.step(WantedState::Running, 7), [Action::Remove]);
    assert_eq!(life.state(), TaskState::Failed);
    assert_eq!(life.status().error, "unhealthy container: health check failed 2 times: no answer");
    assert_eq!(life.status().containers[0].health(), HealthState::Unhealthy);
}

#[test]
fn an_optional_container_may_be_unhealthy() {
    let mut template = template(&[("log", true, &[]), ("main", false, &[])]);
    template.containers[0].health_check = Some(check());
    let mut life = running(&template);
    assert_eq!(life.state(), TaskState::Running);
    for _ in 0..2 {
        life.on(outcome(CheckResult::Failed("x".into())), 5);
        assert_eq!(life.step(WantedState::Running, 5), [Action::Check(0)], "it may recover");
    }
    assert_eq!(life.status().containers[0].health(), HealthState::Unhealthy);
    assert_eq!(life.state(), TaskState::Running);
}

#[test]
fn a_check_that_cannot_be_run_is_told_and_changes_nothing() {
    let mut life = running(&checked());
    life.on(outcome(CheckResult::NotRun("too many open files".into())), 5);
    assert_eq!(life.step(WantedState::Running, 5), [Action::Check(0)]);
    assert_eq!(life.status().message, "cannot run the health check: too many open files");
    assert_eq!((life.state(), life.status().containers[0].failing_streak), (TaskState::Starting, 0));
}

#[test]
fn a_healthy_task_stays_so_over_a_restart_of_the_agent() {
    let mut life = running(&checked());
    life.on(outcome(CheckResult::Passed), 5);
    life.step(WantedState::Running, 5);
    life.on(outcome(CheckResult::Failed("once".into())), 6);
    let recorded = life.status();
    let found = FoundTask::from([("main".to_owned(), Found::Running(started_with(&checked(), 0)))]);
    let mut life = Life::adopt(&checked(), &recorded, &found, true, 50);
    assert_eq!(life.step(WantedState::Running, 50), [Action::Watch(0), Action::Check(0)]);
    assert_eq!(life.status(), recorded);
    life.on(outcome(CheckResult::Failed("twice".into())), 51);
    assert_eq!(life.step(WantedState::Running, 51), [Action::Stop(0)], "the row of failures goes on");
}

#[test]
fn a_restart_in_the_middle_of_a_start_goes_on_with_the_rest() {
    let template = template(&[("web", false, &["db"]), ("db", false, &[])]);
    let mut life = Life::new(&template, 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Prepared(Ok(Prepared::default())), 0);
    life.step(WantedState::Running, 0);
    life.on(Event::Started(1, Ok(started(2))), 0);
    let found = FoundTask::from([("db".to_owned(), Found::Running(started(2)))]);
    let mut life = Life::adopt(&template, &life.status(), &found, true, 1);
    assert_eq!(life.step(WantedState::Running, 1), [Action::Watch(1), Action::Prepare]);
    life.on(Event::Prepared(Ok(Prepared::default())), 2);
    assert_eq!(life.step(WantedState::Running, 2), [Action::Start(0)]);
}

#[path = "task_model_test.rs"]
mod model;
