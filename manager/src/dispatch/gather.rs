//! What one node said and is not written yet: of each of its tasks the latest, of the node itself the latest. A node that
//! talks without end has one write of statuses under way at a time, and one of its description a second; the rest comes
//! together here and never reaches Raft's log. Pure; each session has its own.

use std::collections::HashMap;

use skep_core::change::{Change, Op};
use skep_proto::id::TaskId;
use skep_proto::v1::NodeDescription;
use tokio::time::Instant;

use super::limits::{DESCRIBE_EVERY, PENDING_BATCHES};

/// See the module.
#[derive(Debug)]
pub(super) struct Gather {
    /// A write of statuses is under way.
    writing: bool,
    /// Batches whose statuses wait, in order: they are acknowledged together.
    batches: Vec<u64>,
    changes: Vec<Change>,
    place: HashMap<TaskId, usize>,
    description: Option<NodeDescription>,
    /// The next description is not written before this.
    describe_at: Instant,
}

impl Gather {
    /// Of a node whose next description is not to be written before `describe_at`.
    pub(super) fn new(describe_at: Instant) -> Self {
        Self {
            writing: false,
            batches: Vec::new(),
            changes: Vec::new(),
            place: HashMap::new(),
            description: None,
            describe_at,
        }
    }

    /// Adds a batch, whose changes are of one task each. Of two on one task the one that is further on counts, and the
    /// newer one of two that are equally far.
    pub(super) fn statuses(&mut self, batch: u64, changes: Vec<Change>) {
        self.batches.push(batch);
        for change in changes {
            let Op::ObserveTask(new) = &change.op else { continue };
            match self.place.get(&new.task).map(|at| &mut self.changes[*at]) {
                None => {
                    self.place.insert(new.task, self.changes.len());
                    self.changes.push(change);
                }
                Some(held) => match &held.op {
                    Op::ObserveTask(old) if old.status.state > new.status.state => {}
                    _ => *held = change,
                },
            }
        }
    }

    /// So many batches wait that the node is not to be read any further.
    pub(super) fn is_full(&self) -> bool {
        self.batches.len() >= PENDING_BATCHES
    }

    /// The next write: batches and what is in them. Call [`Self::written`] when it is done. `None` while one is under way,
    /// and if nothing waits.
    pub(super) fn next(&mut self) -> Option<(Vec<u64>, Vec<Change>)> {
        if self.writing || self.batches.is_empty() {
            return None;
        }
        self.writing = true;
        self.place.clear();
        Some((std::mem::take(&mut self.batches), std::mem::take(&mut self.changes)))
    }

    /// The write is done.
    pub(super) fn written(&mut self) {
        self.writing = false;
    }

    /// The node describes itself; an earlier description that still waits is forgotten.
    pub(super) fn describe(&mut self, description: NodeDescription) {
        self.description = Some(description);
    }

    /// When a description is to be written that waits.
    pub(super) fn description_due(&self) -> Option<Instant> {
        self.description.as_ref().map(|_| self.describe_at)
    }

    /// The description that waits, to be written now.
    pub(super) fn description(&mut self, now: Instant) -> Option<NodeDescription> {
        self.describe_at = now + DESCRIBE_EVERY;
        self.description.take()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::Arc;
    use std::time::Duration;

    use skep_core::change::TaskObserved;
    use skep_proto::id::NodeId;
    use skep_proto::v1::{TaskState, TaskStatus};

    use super::*;

    fn change(task: u128, state: TaskState, message: &str) -> Change {
        let status = TaskStatus { state: state.into(), message: message.to_owned(), ..TaskStatus::default() };
        let (task, node) = (TaskId::new(task), NodeId::new(1));
        Change::any(Op::ObserveTask(TaskObserved { task, node, status: Arc::new(status) }))
    }

    #[test]
    fn what_comes_during_a_write_becomes_one_write_with_the_latest_of_each_task() {
        let mut gather = Gather::new(Instant::now());
        gather.statuses(1, vec![change(1, TaskState::Preparing, "")]);
        assert_eq!(gather.next(), Some((vec![1], vec![change(1, TaskState::Preparing, "")])));
        gather.statuses(2, vec![change(1, TaskState::Starting, "")]);
        gather.statuses(3, Vec::new());
        gather.statuses(4, vec![change(2, TaskState::Running, "old"), change(1, TaskState::Running, "")]);
        gather.statuses(5, vec![change(2, TaskState::Running, "new"), change(1, TaskState::Starting, "late")]);
        assert_eq!(gather.next(), None, "one is under way");
        gather.written();
        let latest = vec![change(1, TaskState::Running, ""), change(2, TaskState::Running, "new")];
        assert_eq!(gather.next(), Some((vec![2, 3, 4, 5], latest)));
        gather.written();
        assert_eq!(gather.next(), None);
    }

    #[test]
    fn a_node_that_talks_without_end_is_not_read_for_a_while() {
        let mut gather = Gather::new(Instant::now());
        for batch in 0..PENDING_BATCHES as u64 {
            assert!(!gather.is_full());
            gather.statuses(batch, vec![change(1, TaskState::Running, "again")]);
        }
        assert!(gather.is_full());
        assert_eq!(gather.next().unwrap().1.len(), 1);
        assert!(!gather.is_full());
    }

    #[test]
    fn of_many_descriptions_one_a_second_is_written_and_the_last_is() {
        let begin = Instant::now();
        let mut gather = Gather::new(begin + DESCRIBE_EVERY);
        let mut written = Vec::new();
        for ms in 0..3_500_u64 {
            let now = begin + Duration::from_millis(ms);
            if ms < 3_000 {
                gather.describe(NodeDescription { hostname: format!("host{ms}"), ..NodeDescription::default() });
            }
            if gather.description_due().is_some_and(|due| due <= now) {
                written.extend(gather.description(now));
            }
        }
        let names: Vec<&str> = written.iter().map(|description| description.hostname.as_str()).collect();
        assert_eq!(names, ["host1000", "host2000", "host2999"]);
    }
}
