//! Waits for conditions, with a deadline and what was last seen.

use std::time::{Duration, Instant};

/// Pause between two looks: short enough to be unseen, long enough not to be the load.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// Looks until `look` finds something; panics with `what` and the last complaint after `deadline`.
pub fn until_some<T>(what: &str, deadline: Duration, mut look: impl FnMut() -> Result<T, String>) -> T {
    let started = Instant::now();
    loop {
        match look() {
            Ok(found) => return found,
            Err(complaint) if started.elapsed() > deadline => {
                panic!("after {deadline:?} still waiting for {what}: {complaint}")
            }
            Err(_) => std::thread::sleep(LOOK_AGAIN),
        }
    }
}

/// Looks until `holds` says yes.
pub fn until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) {
    until_some(what, deadline, || if holds() { Ok(()) } else { Err("it does not hold".to_owned()) });
}

/// Whether a process of that number runs. One that is dead and not yet waited for does not (proc_pid_stat(5), field 3).
pub fn alive(pid: u64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit(')')
        .next()
        .and_then(|rest| rest.split_whitespace().next())
        .is_some_and(|state| state != "Z" && state != "X")
}
