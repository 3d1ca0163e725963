//! The first process and its namespaces.
//!
//! Used by the container's creation, on both sides of the clone.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use skep_shim::plan::Plan;

use super::{Failure, at};
use crate::sys::{self, check};

/// clone3(2): start in a cgroup (linux/sched.h, Linux 5.7).
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A process that was made; `pid` is 0 in the new one.
pub(super) struct Made {
    pub(super) pid: i32,
    /// Whether it is in the cgroup that was asked for.
    pub(super) in_group: bool,
}

/// What is made with the process. A cgroup namespace is made later: its root is the group that the process is in then.
pub(super) fn of_its_own(plan: &Plan) -> libc::c_int {
    let asked = (plan.namespaces as libc::c_int) & !libc::CLONE_NEWCGROUP;
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | asked
}

/// fork(2) with namespaces, and into a group of cgroup v2 where the kernel can.
pub(super) fn clone(flags: libc::c_int, group: Option<&OwnedFd>) -> io::Result<Made> {
    // linux/sched.h, struct clone_args
    #[repr(C)]
    #[derive(Default)]
    struct Arguments {
        flags: u64,
        pidfd: u64,
        child_tid: u64,
        parent_tid: u64,
        exit_signal: u64,
        stack: u64,
        stack_size: u64,
        tls: u64,
        set_tid: u64,
        set_tid_size: u64,
        cgroup: u64,
    }
    if let Some(group) = group {
        let arguments = Arguments {
            flags: flags as u64 | CLONE_INTO_CGROUP,
            exit_signal: libc::SIGCHLD as u64,
            cgroup: group.as_raw_fd() as u64,
            ..Arguments::default()
        };
        // SAFETY: a struct with the kernel's layout and its size. The process has one thread, and the child gets a copy of
        // all memory, so it may do all that this one may.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<Arguments>()) };
        if pid >= 0 {
            return Ok(Made { pid: pid as i32, in_group: true });
        }
    }
    // The plain call works in sandboxes that refuse the other. Here flags come first, on all processors but s390.
    // SAFETY: as above; no stack, no places for ids, no thread's memory.
    let pid = unsafe {
        let none = 0_usize;
        libc::syscall(libc::SYS_clone, (flags | libc::SIGCHLD) as libc::c_long, none, none, none, none)
    };
    Ok(Made { pid: check(pid as i32)?, in_group: false })
}

/// Until the command runs, the process ends with its monitor, and no other process may look into it; what it makes has
/// exactly the mode that is told.
pub(super) fn guard() {
    // SAFETY: plain numbers and a C string.
    unsafe {
        libc::umask(0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::prctl(libc::PR_SET_NAME, c"skep-create".as_ptr());
    }
}

/// From now on the process outlives its monitor, as a container must, and is what a program expects to begin as.
pub(super) fn release() -> bool {
    // SAFETY: plain numbers.
    unsafe {
        libc::umask(0o022);
        libc::setsid();
        libc::prctl(libc::PR_SET_PDEATHSIG, 0, 0, 0, 0) == 0
    }
}

/// Joins the network, and makes what could not be made with the process.
pub(super) fn enter(plan: &Plan) -> Result<(), Failure> {
    if !plan.network.is_empty() {
        let step = || at(format!("cannot join the network namespace {}", plan.network));
        let network = File::open(&plan.network).map_err(step())?;
        // SAFETY: the descriptor is open; the process has one thread.
        check(unsafe { libc::setns(network.as_raw_fd(), libc::CLONE_NEWNET) }).map_err(step())?;
    }
    if plan.namespaces & libc::CLONE_NEWCGROUP as u32 != 0 {
        // SAFETY: plain flags; the process has one thread.
        check(unsafe { libc::unshare(libc::CLONE_NEWCGROUP) }).map_err(at("cannot make a cgroup namespace"))?;
    }
    sys::leave_keyring().map_err(at("cannot make a keyring"))?;
    if !plan.hostname.is_empty() {
        sys::set_hostname(&plan.hostname).map_err(at(format!("cannot set the host name {:?}", plan.hostname)))?;
    }
    Ok(())
}
