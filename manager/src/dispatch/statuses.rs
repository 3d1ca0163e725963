//! What a node reports of its tasks, checked: only its own tasks, only the part that is the node's, nothing that would
//! bloat the state, no times that cannot be. Pure. Used by sessions before a batch goes to the store.

use std::collections::HashMap;
use std::sync::Arc;

use skep_core::change::{Change, Op, TaskObserved};
use skep_core::store::State;
use skep_proto::id::{NodeId, TaskId};
use skep_proto::time::UnixMs;
use skep_proto::v1::{self, ContainerStatus, TaskState, TaskStatus};

use super::limits::{CONTAINER_NAME_BYTES, ERROR_BYTES, HEALTH_OUTPUT_BYTES, MESSAGE_BYTES, STATUS_CONTAINERS};

/// A batch after the checks.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// One for each task, in the order of the batch.
    pub(crate) changes: Vec<Change>,
    /// Reports on other nodes' tasks: the node misbehaves.
    pub(crate) foreign: usize,
    /// Reports that say nothing a node can say (bad id, unknown state, a state that is not the node's).
    pub(crate) malformed: usize,
}

/// Checks a batch that `node` sent, at a moment of the swarm's clock. Of several reports on one task the one that is
/// furthest on counts. Reports on tasks that the store no longer has are passed over: the node will be told to remove
/// them. So is what the store knows already, word for word.
pub(crate) fn check(state: &State, node: NodeId, batch: Vec<v1::TaskObserved>, now: UnixMs) -> Checked {
    let mut checked = Checked::default();
    let mut latest: Vec<(TaskId, TaskStatus)> = Vec::with_capacity(batch.len());
    let mut place: HashMap<TaskId, usize> = HashMap::with_capacity(batch.len());
    for report in batch {
        let Some((task, status)) = read(report) else {
            checked.malformed += 1;
            continue;
        };
        let status = match state.task(task) {
            None => continue,
            Some(known) if known.node != Some(node) => {
                checked.foreign += 1;
                continue;
            }
            Some(known) => in_time(status, &known.status, now),
        };
        match place.get(&task) {
            Some(&at) if latest[at].1.state <= status.state => latest[at].1 = status,
            Some(_) => {}
            None => {
                place.insert(task, latest.len());
                latest.push((task, status));
            }
        }
    }
    let observe = |(task, status)| TaskObserved { task, node, status: Arc::new(trimmed(status)) };
    let is_known = |observed: &TaskObserved| state.task(observed.task).is_some_and(|it| it.status == observed.status);
    let changes = latest.into_iter().map(observe).filter(|observed| !is_known(observed));
    checked.changes = changes.map(|observed| Change::any(Op::ObserveTask(observed))).collect();
    checked
}

/// A report that a node can make. The reporter that it names is not believed: the certificate says who it is.
fn read(report: v1::TaskObserved) -> Option<(TaskId, TaskStatus)> {
    let task = TaskId::from_wire(&report.task_id).ok()?;
    let status = report.status?;
    let state = TaskState::try_from(status.state).ok()?;
    // What comes before is the loops', and nobody but the loops knows that a task is an orphan.
    let says = state.belongs_to_node() && state != TaskState::Orphaned;
    says.then_some((task, status))
}

/// A node's clock may be wrong by any amount; the swarm's is what everything is measured by. So a moment that is news lies
/// between the task's last one and now, and one that is known stays what it is.
fn in_time(mut status: TaskStatus, known: &TaskStatus, now: UnixMs) -> TaskStatus {
    let earliest = known.since_ms.min(now.0);
    let set_right = |told: &mut i64, stored: i64| match (*told, stored) {
        // It has not happened.
        (0, _) => {}
        (_, 0) => *told = (*told).clamp(earliest, now.0),
        (_, stored) => *told = stored,
    };
    set_right(&mut status.since_ms, if status.state == known.state { known.since_ms } else { 0 });
    for container in &mut status.containers {
        let same = |stored: &&ContainerStatus| {
            (&stored.name, &stored.container_id) == (&container.name, &container.container_id)
        };
        let (started, finished) =
            known.containers.iter().find(same).map_or((0, 0), |stored| (stored.started_at_ms, stored.finished_at_ms));
        set_right(&mut container.started_at_ms, started);
        set_right(&mut container.finished_at_ms, finished);
    }
    status
}

/// The status without what is not the node's, and no longer than a status may be.
fn trimmed(mut status: TaskStatus) -> TaskStatus {
    status.refusals.clear();
    truncate(&mut status.message, MESSAGE_BYTES);
    truncate(&mut status.error, ERROR_BYTES);
    status.containers.truncate(STATUS_CONTAINERS);
    for container in &mut status.containers {
        truncate(&mut container.name, CONTAINER_NAME_BYTES);
        truncate(&mut container.container_id, CONTAINER_NAME_BYTES);
        truncate(&mut container.health_output, HEALTH_OUTPUT_BYTES);
    }
    status
}

/// Cuts a text at a character's boundary, and gives back what it took.
fn truncate(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        text.truncate(text.floor_char_boundary(bytes));
        text.shrink_to_fit();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prost::Message as _;
    use skep_core::object::{Meta, RevisionKey, Slot, Task};
    use skep_proto::id::ServiceId;
    use skep_proto::v1::{Refusal, WantedState};

    use super::*;

    const ME: NodeId = NodeId::new(1);
    const NOW: UnixMs = UnixMs(10_000);

    fn state() -> State {
        let mut state = State::default();
        for (id, node) in [(1, 1), (2, 1), (3, 2)] {
            let service = ServiceId::new(9);
            state.put(Task {
                id: TaskId::new(id),
                meta: Meta::default(),
                revision: RevisionKey { service, number: 1 },
                slot: Slot::Replica(1),
                node: Some(NodeId::new(node)),
                wanted: WantedState::Running,
                state: TaskState::Assigned,
                status: Arc::default(),
                ports: Vec::new(),
                start_at: None,
                replaces: None,
                policy_restart: false,
                networks: Vec::new(),
            });
        }
        state
    }

    fn report(task: u128, state: TaskState) -> v1::TaskObserved {
        let status = TaskStatus { state: state.into(), ..TaskStatus::default() };
        v1::TaskObserved {
            task_id: TaskId::new(task).to_vec(),
            // A lie, which nobody reads.
            node_id: NodeId::new(2).to_vec(),
            status: Some(status),
        }
    }

    fn stored(checked: &Checked) -> Vec<(u128, NodeId, TaskState)> {
        let read = |change: &Change| match &change.op {
            Op::ObserveTask(observed) => (observed.task.value(), observed.node, observed.status.state()),
            other => panic!("{other:?}"),
        };
        checked.changes.iter().map(read).collect()
    }

    #[test]
    fn a_node_reports_on_its_own_tasks_only() {
        let batch = vec![report(1, TaskState::Running), report(3, TaskState::Failed), report(7, TaskState::Running)];
        let checked = check(&state(), ME, batch, NOW);
        assert_eq!(stored(&checked), [(1, ME, TaskState::Running)]);
        assert_eq!((checked.foreign, checked.malformed), (1, 0));
    }

    #[test]
    fn what_is_stored_is_not_written_again() {
        let mut state = state();
        let mut known = Task::clone(state.task(TaskId::new(1)).unwrap());
        let status = TaskStatus { state: TaskState::Running.into(), since_ms: 9_000, ..TaskStatus::default() };
        (known.state, known.status) = (TaskState::Running, Arc::new(status.clone()));
        state.put(known);
        let mut again = report(1, TaskState::Running);
        again.status = Some(status.clone());
        assert!(check(&state, ME, vec![again.clone()], NOW).changes.is_empty());
        again.status = Some(TaskStatus { message: "news".into(), ..status });
        assert_eq!(check(&state, ME, vec![again], NOW).changes.len(), 1);
    }

    #[test]
    fn of_several_reports_the_furthest_counts() {
        let batch = vec![
            report(2, TaskState::Preparing),
            report(1, TaskState::Accepted),
            report(2, TaskState::Failed),
            report(2, TaskState::Running),
        ];
        let checked = check(&state(), ME, batch, NOW);
        let expected = [(2, ME, TaskState::Failed), (1, ME, TaskState::Accepted)];
        assert_eq!(stored(&checked), expected);
    }

    #[test]
    fn what_no_node_can_say_is_malformed() {
        let mut bad_id = report(1, TaskState::Running);
        bad_id.task_id.pop();
        let mut unknown = report(1, TaskState::Running);
        unknown.status.as_mut().unwrap().state = 513;
        let mut empty = report(1, TaskState::Running);
        empty.status = None;
        let loops = report(1, TaskState::Pending);
        let orphan = report(1, TaskState::Orphaned);
        let checked = check(&state(), ME, vec![bad_id, unknown, empty, loops, orphan], NOW);
        assert!(checked.changes.is_empty());
        assert_eq!(checked.malformed, 5);
    }

    #[test]
    fn a_status_is_cut_to_size() {
        let mut report = report(1, TaskState::Failed);
        let status = report.status.as_mut().unwrap();
        status.error = "ä".repeat(ERROR_BYTES);
        status.refusals = vec![Refusal::default()];
        status.containers = vec![ContainerStatus::default(); STATUS_CONTAINERS + 1];
        status.message = "x".repeat(MESSAGE_BYTES + 1);
        status.containers[0].name = "x".repeat(CONTAINER_NAME_BYTES + 1);
        status.containers[0].container_id = "x".repeat(CONTAINER_NAME_BYTES + 1);
        status.containers[0].health_output = "x".repeat(1_400_000);
        let checked = check(&state(), ME, vec![report], NOW);
        let Op::ObserveTask(observed) = &checked.changes[0].op else {
            panic!("not a report");
        };
        assert_eq!(observed.status.error.len(), ERROR_BYTES);
        assert!(observed.status.refusals.is_empty());
        assert_eq!(observed.status.containers.len(), STATUS_CONTAINERS);
        assert_eq!(observed.status.message.len(), MESSAGE_BYTES);
        let container = &observed.status.containers[0];
        assert_eq!((container.name.len(), container.container_id.len()), (CONTAINER_NAME_BYTES, CONTAINER_NAME_BYTES));
        assert_eq!(container.health_output.len(), HEALTH_OUTPUT_BYTES);
        let most = ERROR_BYTES + MESSAGE_BYTES + STATUS_CONTAINERS * (2 * CONTAINER_NAME_BYTES + HEALTH_OUTPUT_BYTES);
        assert!(observed.status.encoded_len() < most, "something else in it has no bound");
    }

    #[test]
    fn times_of_a_clock_that_is_off_are_set_right() {
        let known = TaskStatus { state: TaskState::Starting.into(), since_ms: 9_000, ..TaskStatus::default() };
        let container = |started_at_ms, finished_at_ms| ContainerStatus {
            name: "main".to_owned(),
            container_id: "one".to_owned(),
            started_at_ms,
            finished_at_ms,
            ..ContainerStatus::default()
        };
        let told = |state: TaskState, since_ms, container| TaskStatus {
            state: state.into(),
            since_ms,
            containers: vec![container],
            ..TaskStatus::default()
        };
        let times = |status: &TaskStatus| {
            let container = &status.containers[0];
            (status.since_ms, container.started_at_ms, container.finished_at_ms)
        };
        for (off, expected) in
            [(0, (9_700, 9_600, 0)), (3_600_000, (10_000, 10_000, 0)), (-3_600_000, (9_000, 9_000, 0))]
        {
            let status = told(TaskState::Running, 9_700 + off, container(9_600 + off, 0));
            assert_eq!(times(&in_time(status, &known, NOW)), expected, "off by {off}");
        }
        // A clock that steps between two reports: what is known stays.
        let known = told(TaskState::Running, 9_700, container(9_600, 0));
        let again = told(TaskState::Running, 9_700, container(9_600, 0));
        assert_eq!(times(&in_time(again, &known, UnixMs(20_000))), (9_700, 9_600, 0));
        let ended = told(TaskState::Failed, 15_000 + 3_600_000, container(9_600, 15_000 + 3_600_000));
        assert_eq!(times(&in_time(ended, &known, UnixMs(15_001))), (15_001, 9_600, 15_001));
        // Told late, of a time when no manager was there.
        let ended = told(TaskState::Complete, 12_000, container(9_600, 11_900));
        assert_eq!(times(&in_time(ended, &known, UnixMs(90_000))), (12_000, 9_600, 11_900));
    }
}
