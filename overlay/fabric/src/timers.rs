//! The thread for what happens without packets: repeated handshakes, keepalives, keys that expire.
//!
//! It sleeps for good while no peer has a session, a handshake or a keepalive interval; [`Alarm::wake`] starts it again.

use std::collections::HashMap;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::core::Core;
use crate::rcu::lock;

/// How exact the protocol's timers are, whose unit is seconds.
const TICK: Duration = Duration::from_millis(250);

/// Wakes the thread.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    woken: Mutex<bool>,
    changed: Condvar,
}

impl Alarm {
    pub(crate) fn wake(&self) {
        let mut woken = lock(&self.woken);
        if !*woken {
            *woken = true;
            self.changed.notify_one();
        }
    }

    /// Waits until the next tick while something is alive, else until it is woken.
    fn wait(&self, alive: bool) {
        let mut woken = lock(&self.woken);
        if alive {
            // It ticks anyway: who wakes it meanwhile need not be heard at once.
            *woken = true;
            drop(woken);
            std::thread::sleep(TICK);
            return;
        }
        while !*woken {
            woken = self.changed.wait(woken).unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
    }
}

/// Runs until the device stops.
pub(crate) fn run(core: &Core) {
    let mut last_tries = HashMap::new();
    while !core.stopping.load(Relaxed) {
        let alive = core.tick(&mut last_tries);
        core.alarm.wait(alive);
    }
}
