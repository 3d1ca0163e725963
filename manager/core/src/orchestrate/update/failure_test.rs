//! The failure maths: which ends count, and when they are too many.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use skep_proto::id::{NodeId, ServiceId, TaskId};
use skep_proto::v1::{
    ContainerSpec, ContainerStatus, HealthCheck, HealthState, RestartCondition, RestartPolicy, TaskState, TaskStatus,
    TaskTemplate, UpdatePolicy, WantedState,
};

use super::failure::is_failure;
use super::policy::Policy;
use crate::object::{Meta, RevisionKey, Service, Slot, Task};

const MONITOR: Duration = Duration::from_secs(5);
const STARTED_MS: i64 = 100_000;

fn template() -> TaskTemplate {
    let main = ContainerSpec { name: "main".into(), ..ContainerSpec::default() };
    let side = ContainerSpec { name: "side".into(), optional: true, ..ContainerSpec::default() };
    TaskTemplate { containers: vec![main, side], ..TaskTemplate::default() }
}

/// A task that ended so long after its start; `None`: it never started.
fn ended(state: TaskState, ran_ms: Option<i64>, health: HealthState) -> Task {
    let container = ContainerStatus {
        name: "main".into(),
        started_at_ms: if ran_ms.is_some() { STARTED_MS } else { 0 },
        health: health.into(),
        ..ContainerStatus::default()
    };
    let since_ms = STARTED_MS + ran_ms.unwrap_or(0);
    let status = TaskStatus { state: state.into(), since_ms, containers: vec![container], ..TaskStatus::default() };
    Task {
        id: TaskId::new(1),
        meta: Meta::default(),
        revision: RevisionKey { service: ServiceId::new(1), number: 2 },
        slot: Slot::Replica(1),
        node: Some(NodeId::new(1)),
        wanted: WantedState::Shutdown,
        state,
        status: Arc::new(status),
        ports: Vec::new(),
        start_at: None,
        replaces: None,
        policy_restart: false,
        networks: Vec::new(),
    }
}

fn counts(task: &Task) -> bool {
    is_failure(task, &template(), MONITOR)
}

#[test]
fn early_ends_count_and_late_ones_do_not() {
    let none = HealthState::None;
    assert!(counts(&ended(TaskState::Rejected, None, none)), "it never ran");
    assert!(counts(&ended(TaskState::Failed, Some(5_000), none)));
    assert!(!counts(&ended(TaskState::Failed, Some(5_001), none)));
    assert!(!counts(&ended(TaskState::Shutdown, Some(10), none)), "it was asked to stop");
    assert!(!counts(&ended(TaskState::Orphaned, Some(10), none)), "nobody knows how it ended");
    assert!(!counts(&ended(TaskState::Running, Some(10), none)));
}

#[test]
fn a_lost_host_is_not_the_image_s_fault() {
    let mut task = ended(TaskState::Failed, Some(10), HealthState::None);
    Arc::make_mut(&mut task.status).host_lost = true;
    assert!(!counts(&task));
}

#[test]
fn completion_counts_where_it_is_not_meant() {
    let task = ended(TaskState::Complete, Some(10), HealthState::None);
    for (condition, is_failed) in
        [(RestartCondition::Any, true), (RestartCondition::OnFailure, false), (RestartCondition::None, false)]
    {
        let restart = Some(RestartPolicy { condition: condition.into(), ..RestartPolicy::default() });
        let template = TaskTemplate { restart, ..template() };
        assert_eq!(is_failure(&task, &template, MONITOR), is_failed, "{condition:?}");
    }
}

#[test]
fn health_decides_when_a_task_ran() {
    let hour = Some(3_600_000);
    assert!(counts(&ended(TaskState::Failed, hour, HealthState::Starting)), "it was never healthy");
    assert!(counts(&ended(TaskState::Failed, hour, HealthState::Unhealthy)));
    assert!(!counts(&ended(TaskState::Failed, hour, HealthState::Healthy)));
    let mut template = template();
    let check = HealthCheck {
        interval_ms: 1_000,
        timeout_ms: 2_000,
        retries: 2,
        start_period_ms: 10_000,
        ..HealthCheck::default()
    };
    template.containers[0].health_check = Some(check);
    // Healthy after 16 s at the latest, then watched for 5 s.
    let healthy = |ran_ms| ended(TaskState::Failed, Some(ran_ms), HealthState::Healthy);
    assert!(is_failure(&healthy(21_000), &template, MONITOR));
    assert!(!is_failure(&healthy(21_001), &template, MONITOR));
}

#[test]
fn ratios_bear_what_they_say() {
    let of = |max_failure_ratio| {
        let spec = skep_proto::v1::ServiceSpec {
            update: Some(UpdatePolicy { max_failure_ratio, ..UpdatePolicy::default() }),
            ..Default::default()
        };
        let (meta, ports) = (Meta::default(), Vec::new());
        Policy::of(&Service {
            id: ServiceId::new(1),
            meta,
            spec: Arc::new(spec),
            revision: 2,
            ports,
            update: None,
            virtual_addresses: Vec::new(),
        })
    };
    assert!(of(0.0).is_exceeded(1, 100_000));
    assert!(!of(0.0).is_exceeded(0, 10));
    assert!(!of(0.1).is_exceeded(1, 10));
    assert!(of(0.1).is_exceeded(2, 10));
    assert!(!of(1.0).is_exceeded(10, 10));
    assert_eq!(of(0.0).monitor, MONITOR, "the default");
    assert_eq!(of(0.0).parallelism, 1, "the default");
}
