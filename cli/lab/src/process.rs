//! Processes by identity: a pid alone may be another process tomorrow, a pid with its start time may not.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

/// One process of this boot of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Field 22 of `/proc/<pid>/stat`: clock ticks after boot.
    pub(crate) start_ticks: u64,
}

impl ProcessId {
    /// The process that has this pid now; None if there is none, or only a zombie of it.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some(Self { pid, start_ticks: live_start_ticks(&stat)? })
    }

    /// Whether it still runs (a zombie does not).
    pub(crate) fn is_alive(self) -> bool {
        Self::of(self.pid) == Some(self)
    }

    /// A handle that cannot come to mean another process; None if it is gone.
    pub(crate) fn open(self) -> io::Result<Option<PidFd>> {
        let Some(handle) = PidFd::open(self.pid)? else { return Ok(None) };
        // Checked after opening: the pid cannot have been handed on in between.
        Ok(self.is_alive().then_some(handle))
    }
}

/// Start time out of `/proc/<pid>/stat` (proc_pid_stat(5)); None for zombies and dead processes.
fn live_start_ticks(stat: &str) -> Option<u64> {
    // The command's name, in parentheses, may itself hold spaces and parentheses.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    if matches!(fields.next()?, "Z" | "X" | "x") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

/// A pidfd (pidfd_open(2), Linux 5.3).
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    /// None if there is no such process.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Self>> {
        // SAFETY: the call takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        match Errno::result(fd) {
            Ok(fd) => {
                let fd = i32::try_from(fd).map_err(io::Error::other)?;
                // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
                Ok(Some(Self(unsafe { OwnedFd::from_raw_fd(fd) })))
            }
            Err(Errno::ESRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sends a signal; a process that has ended is no error.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the null siginfo is allowed by pidfd_send_signal(2); the rest are integers.
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(done) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Waits for the end of the process; false when the deadline passes first or a signal handler ran.
    pub(crate) fn wait_until(&self, deadline: Instant) -> io::Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        // Rounded up, so that the last millisecond is not spent spinning.
        let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        match poll(&mut fds, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::process::Command;

    #[test]
    fn the_name_may_hold_anything() {
        let stat = "7 (a) Z (b) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20";
        assert_eq!(live_start_ticks(stat), Some(4242));
        assert_eq!(live_start_ticks("7 (a) Z 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"), None);
        assert_eq!(live_start_ticks("garbage"), None);
    }

    #[test]
    fn a_killed_child_is_gone_before_it_is_reaped() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id().try_into().unwrap()).unwrap();
        let handle = id.open().unwrap().unwrap();
        assert!(!handle.wait_until(Instant::now()).unwrap());
        handle.signal(Signal::SIGKILL).unwrap();
        assert!(handle.wait_until(Instant::now() + Duration::from_secs(5)).unwrap());
        assert!(!id.is_alive(), "a zombie counts as gone");
        child.wait().unwrap();
        assert!(id.open().unwrap().is_none());
    }

    #[test]
    fn another_start_time_is_another_process() {
        let me = ProcessId::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(me.is_alive());
        assert!(!ProcessId { start_ticks: me.start_ticks + 1, ..me }.is_alive());
    }
}
