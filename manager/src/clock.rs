//! The leader's clock. Wall time is read once, then it runs with the monotonic clock: a step of the machine's clock
//! moves no deadline.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use skep_proto::time::UnixMs;

/// Wall time that never steps within a process.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    started: Instant,
    wall: UnixMs,
}

impl Clock {
    /// Reads the wall clock, this once.
    pub(crate) fn start() -> Self {
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started: Instant::now(), wall: UnixMs::ZERO.plus(since_epoch) }
    }

    /// The present moment.
    pub(crate) fn now(&self) -> UnixMs {
        self.wall.plus(self.started.elapsed())
    }
}
