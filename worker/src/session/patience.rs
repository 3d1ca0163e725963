//! How long a manager may leave a heartbeat unanswered before the node turns to another one. Pure.
//!
//! Short where there is another manager, so that the loss of one is over long before three heartbeats are missed. A
//! manager that is only slow must not be left again and again, though: each time a session ends for want of patience,
//! there is twice as much of it, until one has lasted.

use std::time::Duration;

/// Least patience: what a busy machine may take for an answer.
const LEAST: Duration = Duration::from_millis(500);
/// Heartbeats' periods without an answer after which a manager is given up in any case. With the period before the first
/// of them, that is three missed heartbeats.
const MOST_PERIODS: u32 = 2;
/// A session that lasted so long proves the patience enough.
const PROVED: Duration = Duration::from_secs(60);

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Patience {
    doubled: u32,
}

impl Patience {
    /// How long after an unanswered heartbeat the session is over.
    pub(super) fn after_beat(&self, period: Duration, has_other: bool) -> Duration {
        let most = period * MOST_PERIODS;
        if !has_other {
            return most;
        }
        let least = (period / 2).max(LEAST);
        least.saturating_mul(1 << self.doubled.min(8)).min(most)
    }

    /// A session ended because an answer did not come in time.
    pub(super) fn ran_out(&mut self) {
        self.doubled += 1;
    }

    /// A session lasted so long.
    pub(super) fn lasted(&mut self, time: Duration) {
        if time >= PROVED {
            self.doubled = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_is_short_only_where_there_is_a_choice_and_grows() {
        let mut patience = Patience::default();
        assert_eq!(patience.after_beat(SECOND, false), 2 * SECOND);
        assert_eq!(patience.after_beat(SECOND, true), SECOND / 2);
        assert_eq!(patience.after_beat(5 * SECOND, true), 5 * SECOND / 2);
        // Tests with short periods still leave a busy machine some time.
        assert_eq!(patience.after_beat(SECOND / 5, true), 2 * SECOND / 5);
        patience.ran_out();
        assert_eq!(patience.after_beat(SECOND, true), SECOND);
        for _ in 0..100 {
            patience.ran_out();
        }
        assert_eq!(patience.after_beat(SECOND, true), 2 * SECOND);
        patience.lasted(SECOND);
        assert_eq!(patience.after_beat(SECOND, true), 2 * SECOND);
        patience.lasted(PROVED);
        assert_eq!(patience.after_beat(SECOND, true), SECOND / 2);
    }
}
