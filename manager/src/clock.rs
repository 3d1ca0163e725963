//! The swarm's clock, as this manager keeps it. It runs with the monotonic clock and never goes back: a step of the
//! machine's clock moves no deadline, it only bends the clock's rate by one part in a hundred until both agree again.
//!
//! The leader's is the swarm's. Followers set theirs by it, and no manager's is behind what it has applied, so that time
//! neither jumps nor goes back when the lead changes.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use skep_proto::time::UnixMs;
// The machine's monotonic clock, which a simulation moves by hand.
use tokio::time::Instant;

/// Of the time that has passed, how much may be added or left out to come nearer to the wall clock. A step of an hour is
/// caught up with in four days; a delay of ten seconds is wrong by a tenth of one meanwhile.
const SLEW: i64 = 100;
/// The rate is judged anew this often at most: below it, a hundredth is lost to rounding.
const ANCHOR: Duration = Duration::from_millis(20);

/// The clock. Cheap to clone; all clones are one.
#[derive(Clone, Debug)]
pub(crate) struct Clock(Arc<Mutex<Reading>>);

/// The clock at a moment. Microseconds since the Unix epoch.
#[derive(Debug)]
struct Reading {
    anchor: Instant,
    anchor_us: i64,
    /// The latest that was told.
    told_us: i64,
}

impl Clock {
    /// Starts from the wall clock.
    pub(crate) fn start() -> Self {
        let us = wall_us();
        Self(Arc::new(Mutex::new(Reading { anchor: Instant::now(), anchor_us: us, told_us: us })))
    }

    /// The present moment.
    pub(crate) fn now(&self) -> UnixMs {
        UnixMs(self.lock().tell(Instant::now(), wall_us()) / 1000)
    }

    /// Something that happened at `at` was applied: the present is not before it.
    pub(crate) fn at_least(&self, at: UnixMs) {
        let mut reading = self.lock();
        let us = at.0.saturating_mul(1000);
        if reading.tell(Instant::now(), wall_us()) < us {
            reading.set(Instant::now(), us);
        }
    }

    /// Takes over the leader's time. The follower's may jump ahead by this, as nothing is decided by it; it waits rather
    /// than go back by less than a tick of the log.
    pub(crate) fn follow(&self, leader: UnixMs) {
        let mut reading = self.lock();
        let told = reading.told_us;
        reading.set(Instant::now(), leader.0.saturating_mul(1000));
        reading.told_us = told.min(reading.anchor_us);
    }

    fn lock(&self) -> MutexGuard<'_, Reading> {
        // Each change is a few assignments, which do not panic.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn set(&mut self, at: Instant, us: i64) {
        (self.anchor, self.anchor_us, self.told_us) = (at, us, us);
    }

    /// The time at a moment, given what the wall clock says.
    fn tell(&mut self, at: Instant, wall_us: i64) -> i64 {
        let passed = at.saturating_duration_since(self.anchor);
        let passed_us = i64::try_from(passed.as_micros()).unwrap_or(i64::MAX);
        let straight = self.anchor_us.saturating_add(passed_us);
        let slew = passed_us / SLEW;
        let now = straight.saturating_add(wall_us.saturating_sub(straight).clamp(-slew, slew)).max(self.told_us);
        self.told_us = now;
        if passed >= ANCHOR {
            (self.anchor, self.anchor_us) = (at, now);
        }
        now
    }
}

/// What the machine's clock says.
fn wall_us() -> i64 {
    #[cfg(feature = "sim")]
    if let Some(us) = crate::sim::wall_us() {
        return us;
    }
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since_epoch.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;
    const START_US: i64 = 1_700_000_000_000_000;

    /// Runs a clock for `seconds`, looking each 10 ms, while the wall clock is `off_us` from true time. Returns how far
    /// it is from true time at the end.
    fn run(reading: &mut Reading, from: Instant, seconds: u32, off_us: i64) -> i64 {
        let (mut at, mut last) = (from, reading.told_us);
        for _ in 0..seconds * 100 {
            at += Duration::from_millis(10);
            let truth = START_US + i64::try_from((at - from).as_micros()).unwrap_or(0);
            let now = reading.tell(at, truth + off_us);
            assert!(now >= last, "it went back");
            assert!(now - last <= 10_101, "it jumped");
            last = now;
        }
        last - START_US - i64::from(seconds) * 1_000_000
    }

    #[test]
    fn a_step_of_an_hour_bends_the_rate_by_a_hundredth() {
        for step in [HOUR_US, -HOUR_US] {
            let start = Instant::now();
            let mut reading = Reading { anchor: start, anchor_us: START_US, told_us: START_US };
            let error = run(&mut reading, start, 100, step);
            assert!((error - step.signum() * 1_000_000).abs() < 20_000, "{error}");
        }
    }

    #[test]
    fn a_small_difference_is_caught_up_with_and_no_further() {
        let start = Instant::now();
        let mut reading = Reading { anchor: start, anchor_us: START_US, told_us: START_US };
        let error = run(&mut reading, start, 60, 200_000);
        assert!((error - 200_000).abs() < 1_000, "{error}");
    }

    #[test]
    fn it_is_never_before_what_was_applied_and_follows_the_leader() {
        let clock = Clock::start();
        let later = clock.now().plus(Duration::from_secs(3600));
        clock.at_least(later);
        assert!(clock.now() >= later);
        clock.at_least(UnixMs::ZERO);
        assert!(clock.now() >= later);
        let earlier = later.minus(Duration::from_secs(1800));
        clock.follow(earlier);
        let now = clock.now();
        assert!(now >= earlier && now < later, "{now}");
    }
}
