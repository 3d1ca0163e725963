//! What the task states mean: the order, and the questions that loops, scheduler and agents ask of them.

use crate::v1::{TaskState, WantedState};

impl TaskState {
    /// Whether the run is over: nothing of the task runs any more, and nothing will.
    pub fn is_terminal(self) -> bool {
        self >= Self::Complete
    }

    /// Whether the observed part belongs to the node: from `ACCEPTED` on.
    pub fn belongs_to_node(self) -> bool {
        self >= Self::Accepted
    }
}

impl WantedState {
    /// Whether the task is to exist and run, now or soon. One that drains still runs, but is on its way out.
    pub fn wants_to_run(self) -> bool {
        matches!(self, Self::Ready | Self::Running)
    }

    /// Whether the task is to stop.
    pub fn wants_to_stop(self) -> bool {
        matches!(self, Self::Shutdown | Self::Remove)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_are_ordered_as_a_life_goes() {
        let life = [
            TaskState::New,
            TaskState::Pending,
            TaskState::Assigned,
            TaskState::Accepted,
            TaskState::Preparing,
            TaskState::Ready,
            TaskState::Starting,
            TaskState::Running,
            TaskState::Complete,
            TaskState::Shutdown,
            TaskState::Failed,
            TaskState::Rejected,
            TaskState::Orphaned,
        ];
        assert!(life.is_sorted());
        assert_eq!(life.iter().filter(|state| state.is_terminal()).count(), 5);
    }
}
