//! Priority of threads: what keeps the lead comes before what the daemon does otherwise.
//!
//! A heartbeat costs microseconds, but behind two hundred starting containers on two cores it would come too late. Linux
//! has a nice value for each thread (setpriority(2), "C library/kernel differences"), which new threads inherit.

use std::sync::Once;

/// Nice value of Raft's threads: far before ordinary work, behind the kernel's own.
const RAISED: libc::c_int = -10;

/// Raises this thread, where that is permitted (root, or CAP_SYS_NICE).
pub(crate) fn raise() {
    static REFUSED: Once = Once::new();
    if !set(RAISED) {
        REFUSED.call_once(|| tracing::info!("not permitted to raise the priority of Raft's threads"));
    }
}

/// Gives this thread the priority of ordinary work, which a raised parent did not hand it.
pub(crate) fn lower() {
    set(0);
}

/// Does work with the priority of ordinary work on a thread of Raft's, which has its own again afterwards.
pub(crate) fn lowered<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the call takes numbers only; PRIO_PROCESS with 0 means the calling thread.
    let nice = unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) };
    if nice >= 0 {
        return work();
    }
    lower();
    let done = work();
    set(nice);
    done
}

fn set(nice: libc::c_int) -> bool {
    // SAFETY: the call takes numbers only; PRIO_PROCESS with 0 means the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nice() -> libc::c_int {
        // SAFETY: the call takes numbers only.
        unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
    }

    #[test]
    fn only_the_calling_thread_changes() {
        let before = nice();
        let raised = std::thread::spawn(|| {
            raise();
            let raised = nice();
            assert_eq!((lowered(nice), nice()), (raised.max(0), raised));
            lower();
            (raised, nice())
        });
        let (raised, lowered) = raised.join().expect("it does not panic");
        assert!(raised == RAISED || raised == before, "{raised}");
        assert_eq!(lowered, 0.max(if raised == RAISED { 0 } else { before }));
        assert_eq!(nice(), before);
    }
}
