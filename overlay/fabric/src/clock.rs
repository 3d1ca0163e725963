//! The one clock of the device: CLOCK_BOOTTIME, which also runs while the machine sleeps, as keys age meanwhile.

use std::time::Duration;

/// Time since the machine started. Costs no system call (vDSO).
#[inline]
pub(crate) fn now() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a timespec that the call fills; the clock exists since Linux 2.6.39, so it cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
