//! Statuses on their way to the managers: the newest of each task, sent in numbered batches, kept until stored. Pure.
//!
//! Used by the session under a lock. A later status of a task replaces an unsent one, so a burst costs little; a lost
//! connection puts what was not acknowledged back in line.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use skep_proto::id::TaskId;
use skep_proto::v1::{TaskState, TaskStatus};

/// Statuses in one batch at most: keeps a batch far below the size of a message (4 MiB).
pub const MAX_BATCH: usize = 500;
/// Steps on the way to RUNNING wait so long for others, so that a fast start is told in one message.
pub const GATHER: Duration = Duration::from_millis(20);
/// Batches in flight at most; more would only queue up at the manager.
pub const MAX_IN_FLIGHT: usize = 4;

/// Whether `new` may replace `old`: reports only go forward.
pub fn supersedes(new: &TaskStatus, old: &TaskStatus) -> bool {
    let terminal_twice = old.state().is_terminal() && new.state() != old.state();
    new.state >= old.state && !terminal_twice
}

/// Whether others wait for it: a task that runs, or that is over.
fn is_urgent(status: &TaskStatus) -> bool {
    status.state() >= TaskState::Running
}

/// One batch as sent.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// Its number in the session.
    pub number: u64,
    /// What it says.
    pub statuses: Vec<(TaskId, TaskStatus)>,
}

/// The statuses that no manager has acknowledged.
#[derive(Debug, Default)]
pub struct Outbox {
    waiting: BTreeMap<TaskId, TaskStatus>,
    waiting_since: Option<Instant>,
    urgent: bool,
    in_flight: VecDeque<Batch>,
    last_number: u64,
}

impl Outbox {
    /// Puts a status in line. One that does not lead forward from what is in line is dropped.
    pub fn push(&mut self, task: TaskId, status: TaskStatus, now: Instant) {
        if self.newest(task).is_some_and(|known| !supersedes(&status, known)) {
            return;
        }
        self.urgent |= is_urgent(&status);
        self.waiting_since.get_or_insert(now);
        self.waiting.insert(task, status);
    }

    fn newest(&self, task: TaskId) -> Option<&TaskStatus> {
        self.waiting.get(&task).or_else(|| {
            let mut sent = self.in_flight.iter().rev().flat_map(|batch| &batch.statuses);
            sent.find(|(id, _)| *id == task).map(|(_, status)| status)
        })
    }

    /// Drops what is in line for a task that the managers no longer know.
    pub fn forget(&mut self, task: TaskId) {
        self.waiting.remove(&task);
    }

    /// Whether everything was acknowledged.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty() && self.in_flight.is_empty()
    }

    /// When [`take`](Self::take) is to be called next. `None`: not before a push or an acknowledgement.
    pub fn due(&self) -> Option<Instant> {
        let since = self.waiting_since?;
        if self.in_flight.len() >= MAX_IN_FLIGHT {
            return None;
        }
        let at_once = self.waiting.len() >= MAX_BATCH || (self.urgent && self.in_flight.is_empty());
        Some(if at_once { since } else { since + GATHER })
    }

    /// The next batch, if one is due.
    pub fn take(&mut self, now: Instant) -> Option<Batch> {
        if self.due()? > now {
            return None;
        }
        let mut statuses = Vec::with_capacity(self.waiting.len().min(MAX_BATCH));
        while statuses.len() < MAX_BATCH {
            let Some(entry) = self.waiting.pop_first() else { break };
            statuses.push(entry);
        }
        if self.waiting.is_empty() {
            self.waiting_since = None;
            self.urgent = false;
        }
        self.last_number += 1;
        let batch = Batch { number: self.last_number, statuses };
        self.in_flight.push_back(batch.clone());
        Some(batch)
    }

    /// The manager stored batch `number` and, as it works in order, all before it. Returns what is now known there.
    pub fn acknowledge(&mut self, number: u64) -> Vec<(TaskId, TaskStatus)> {
        let mut stored = Vec::new();
        while self.in_flight.front().is_some_and(|batch| batch.number <= number) {
            if let Some(batch) = self.in_flight.pop_front() {
                stored.extend(batch.statuses);
            }
        }
        stored
    }

    /// The connection is gone: what was in flight is in line again, and numbers start anew.
    pub fn reset(&mut self, now: Instant) {
        // Later batches hold newer statuses, and whatever waits is newer than all that was sent.
        let sent = std::mem::take(&mut self.in_flight);
        let sent: BTreeMap<_, _> = sent.into_iter().flat_map(|batch| batch.statuses).collect();
        for (task, status) in sent {
            self.urgent |= is_urgent(&status);
            self.waiting.entry(task).or_insert(status);
        }
        if !self.waiting.is_empty() {
            self.waiting_since.get_or_insert(now);
        }
        self.last_number = 0;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use proptest::prelude::*;

    use super::*;

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus { state: state.into(), ..TaskStatus::default() }
    }

    fn id(value: u128) -> TaskId {
        TaskId::new(value)
    }

    #[test]
    fn what_others_wait_for_goes_at_once_and_the_rest_gathers() {
        let start = Instant::now();
        let mut outbox = Outbox::default();
        outbox.push(id(1), status(TaskState::Preparing), start);
        assert_eq!(outbox.take(start), None);
        assert_eq!(outbox.due(), Some(start + GATHER));
        outbox.push(id(1), status(TaskState::Running), start);
        let batch = outbox.take(start).unwrap();
        assert_eq!(batch.statuses, [(id(1), status(TaskState::Running))]);
        // With one in flight, the next ones gather.
        outbox.push(id(2), status(TaskState::Running), start);
        assert_eq!(outbox.take(start), None);
        assert_eq!(outbox.take(start + GATHER).unwrap().number, 2);
        assert_eq!(outbox.acknowledge(2).len(), 2);
        assert!(outbox.is_empty());
    }

    #[test]
    fn batches_are_bounded_in_size_and_number() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        for value in 0..(MAX_BATCH as u128 * 6) {
            outbox.push(id(value), status(TaskState::Running), now);
        }
        let sent: Vec<_> = std::iter::from_fn(|| outbox.take(now + GATHER)).collect();
        assert_eq!(sent.len(), MAX_IN_FLIGHT);
        assert!(sent.iter().all(|batch| batch.statuses.len() == MAX_BATCH));
        outbox.acknowledge(1);
        assert!(outbox.take(now + GATHER).is_some());
    }

    #[test]
    fn a_status_never_goes_back() {
        let now = Instant::now();
        let mut outbox = Outbox::default();
        outbox.push(id(1), status(TaskState::Failed), now);
        outbox.push(id(1), status(TaskState::Running), now);
        outbox.push(id(1), status(TaskState::Rejected), now);
        assert_eq!(outbox.take(now).unwrap().statuses, [(id(1), status(TaskState::Failed))]);
        outbox.push(id(1), status(TaskState::Running), now);
        assert_eq!(outbox.take(now + GATHER), None);
    }

    #[derive(Debug, Clone)]
    enum Op {
        Push(u128, usize),
        Take,
        Ack(u64),
        Reset,
    }

    proptest! {
        /// Whatever happens, the manager ends up with the newest status of every task.
        #[test]
        fn nothing_is_lost(ops in prop::collection::vec(prop_oneof![
            (0u128..5, 0usize..4).prop_map(|(task, state)| Op::Push(task, state)),
            Just(Op::Take),
            (0u64..4).prop_map(Op::Ack),
            Just(Op::Reset),
        ], 0..60)) {
            let states = [TaskState::Accepted, TaskState::Starting, TaskState::Running, TaskState::Failed];
            let (mut now, mut outbox) = (Instant::now(), Outbox::default());
            let (mut truth, mut stored) = (BTreeMap::<TaskId, TaskState>::new(), BTreeMap::<TaskId, TaskState>::new());
            let store = |stored: &mut BTreeMap<TaskId, TaskState>, acked: Vec<(TaskId, TaskStatus)>| {
                for (task, status) in acked {
                    let known = stored.entry(task).or_insert(TaskState::New);
                    *known = (*known).max(status.state());
                }
            };
            for op in ops {
                now += GATHER;
                match op {
                    Op::Push(task, state) => {
                        let known = truth.entry(id(task)).or_insert(TaskState::New);
                        *known = (*known).max(states[state]);
                        // The driver only moves forward, as the truth does.
                        outbox.push(id(task), status(*known), now);
                    }
                    Op::Take => drop(outbox.take(now)),
                    Op::Ack(number) => store(&mut stored, outbox.acknowledge(number)),
                    Op::Reset => outbox.reset(now),
                }
            }
            outbox.reset(now);
            while let Some(batch) = outbox.take(now + GATHER) {
                store(&mut stored, outbox.acknowledge(batch.number));
            }
            prop_assert!(outbox.is_empty());
            prop_assert_eq!(stored, truth);
        }
    }
}
