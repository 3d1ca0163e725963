//! Patience with a swarm that has no leader at the moment, and with a daemon that is being restarted: neither is the
//! user's problem. `client.rs` makes every read and write through it.

use std::time::Duration;

use skep_identity::transport::refusal;
use tokio::time::{Instant, sleep};
use tonic::{Code, Status};

use crate::failure::is_connection_loss;
use crate::output;

/// How long calls are tried again. A lost leader is followed by the next one within about a second.
const PATIENCE: Duration = Duration::from_secs(10);

/// A person who waits longer than this is told why.
const SILENCE: Duration = Duration::from_secs(2);

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// The tries of one call.
#[derive(Debug)]
pub(crate) struct Patience {
    started: Instant,
    /// How long it lasts.
    lasts: Duration,
    pause: Duration,
    tries: u32,
    told: bool,
}

impl Patience {
    /// For a call that is made now.
    pub(crate) fn new() -> Self {
        Self::of(PATIENCE)
    }

    /// The same, with another span of time.
    pub(crate) fn of(lasts: Duration) -> Self {
        Self { started: Instant::now(), lasts, pause: FIRST_PAUSE, tries: 0, told: false }
    }

    /// Waits for the moment of the next try. Gives the status back if another try is in vain, or patience is at its
    /// end; a call that took that long by itself is tried once more all the same.
    pub(crate) async fn after(&mut self, status: Status) -> Result<(), Status> {
        if !may_work_later(&status) {
            return Err(status);
        }
        self.tries += 1;
        let waited = self.started.elapsed();
        if waited + self.pause > self.lasts && self.tries > 1 {
            return Err(status);
        }
        if waited >= SILENCE && !self.told {
            self.told = true;
            output::note(format_args!("{}; trying again…", reason(&status)));
        }
        sleep(self.pause).await;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        Ok(())
    }
}

/// No leader, no answer in time, or no connection; nothing that a person must mend first.
pub(crate) fn may_work_later(status: &Status) -> bool {
    // Whose certificate is refused waits in vain.
    refusal(status).is_none()
        && (is_connection_loss(status) || matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded))
}

fn reason(status: &Status) -> &str {
    match status.message() {
        _ if is_connection_loss(status) => "the connection to the skep daemon broke off",
        "" => "waiting for a leader",
        message => message,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn patience_ends() {
        let (mut patience, started) = (Patience::new(), Instant::now());
        let mut tries = 0;
        while patience.after(Status::unavailable("there is no leader")).await.is_ok() {
            tries += 1;
        }
        assert!((10..20).contains(&tries), "{tries}");
        assert!((PATIENCE - LONGEST_PAUSE..=PATIENCE).contains(&started.elapsed()), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_call_is_tried_twice() {
        let mut patience = Patience::new();
        sleep(2 * PATIENCE).await;
        assert!(patience.after(Status::deadline_exceeded("result unknown")).await.is_ok());
        sleep(2 * PATIENCE).await;
        assert_eq!(patience.after(Status::deadline_exceeded("still")).await.unwrap_err().message(), "still");
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_are_final() {
        let started = Instant::now();
        let status = Patience::new().after(Status::already_exists("service web exists")).await.unwrap_err();
        assert_eq!((status.code(), started.elapsed()), (Code::AlreadyExists, Duration::ZERO));
    }
}
