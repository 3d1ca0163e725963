//! The way of a command into a running container: two processes, of which the container sees only the second.
//!
//! Used by `skep-shim exec`. What holds CAP_SYS_PTRACE in a container looks into each process that it sees, and can write to
//! its memory, dumpable or not: such a process must not have more than the container has. So the first one stays out of the
//! container's process ids. It does all that takes the host: cgroups, limits, the step into the container's other
//! namespaces; then it gives up every descriptor and every right, and takes the seccomp filter. Only then it makes the
//! second, as it is by then, which becomes the command.
//!
//! The order matters: what needs the host's file systems comes before the mount namespace, what needs root's rights before
//! they go. Nothing here returns to the parent's code.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::AtomicI32;

use skep_shim::entry::Entry;

use crate::program::{Command, FAILED, Refusal};
use crate::report::Report;
use crate::rights::{self, Failure, Rights};
use crate::{exec, sys};

/// The namespaces of the container but that of users. That of process ids counts for children alone (setns(2)).
const NAMESPACES: libc::c_int = libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWCGROUP
    | libc::CLONE_NEWPID;

/// How it is meant, wherever it runs.
pub(crate) struct Way<'a> {
    pub(crate) entry: &'a Entry,
    /// The container's first process.
    pub(crate) container: &'a OwnedFd,
    /// Whether the container has a user namespace of its own.
    pub(crate) own_users: bool,
    /// Where the command's process id is told.
    pub(crate) born: &'static AtomicI32,
}

/// Goes in and ends, with the command as a child of this process' parent; or says on `report` why not: `<exit code>
/// <sentence>`.
pub(crate) fn run(way: &Way<'_>, report: &File) -> ! {
    let mut report = Report::new(report);
    let code = match go(way, &mut report) {
        Ok(()) => 0,
        Err((code, sentence)) => {
            report.say(&format!("{code} {sentence}"));
            code
        }
    };
    // SAFETY: ends this process without running anything of the parent's.
    unsafe { libc::_exit(code) }
}

/// Returns in the first process when the second is there, in either with why there is no command.
fn go(way: &Way<'_>, report: &mut Report) -> Result<(), Refusal> {
    let failed = |(what, error): Failure| (FAILED, format!("{what}: {}", sys::words(&error)));
    prepare(way).map_err(failed)?;
    report.stay_alone().map_err(because("cannot close files")).map_err(failed)?;
    let command = Command::new(&way.entry.args, &way.entry.env)?;
    rights::confine(&rights_of(way.entry)).map_err(failed)?;
    match sys::fork_sibling(way.born).map_err(because("cannot make a process")).map_err(failed)? {
        0 => {
            // SAFETY: no arguments.
            unsafe { libc::setsid() };
            Err(command.run())
        }
        _ => Ok(()),
    }
}

fn rights_of(entry: &Entry) -> Rights<'_> {
    Rights {
        uid: entry.uid,
        gid: entry.gid,
        groups: &entry.groups,
        capabilities: entry.capabilities,
        no_new_privileges: entry.no_new_privileges,
        cwd: &entry.cwd,
        filter: &entry.filter,
    }
}

fn because(what: &'static str) -> impl FnOnce(io::Error) -> Failure {
    move |error| (what, error)
}

/// All that takes the host, and the steps away from it.
fn prepare(way: &Way<'_>) -> Result<(), Failure> {
    let entry = way.entry;
    for file in &entry.join {
        match fs::write(file, "0") {
            // A hierarchy in which the container has no group.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.map_err(because("cannot join the container's cgroup"))?,
        }
    }
    fs::write("/proc/self/oom_score_adj", entry.oom_score_adj.to_string())
        .map_err(because("cannot set the OOM score"))?;
    sys::choose_profile(&entry.apparmor).map_err(because("cannot apply the AppArmor profile"))?;
    let stdin = exec::null().map_err(because("cannot open /dev/null"))?;
    sys::duplicate(&stdin, 0).map_err(because("cannot set the input"))?;
    sys::leave_keyring().map_err(because("cannot make a keyring"))?;
    rights::limit(&entry.rlimits)?;
    // SAFETY: plain numbers; this process has one thread. The session must not be the agent's, whatever the filter allows
    // the command's process.
    unsafe {
        libc::setsid();
        libc::umask(0o022);
    }
    sys::enter_namespaces(way.container, NAMESPACES).map_err(because("cannot enter the container"))?;
    if way.own_users {
        // Last: the others are entered with the host's rights.
        sys::enter_namespaces(way.container, libc::CLONE_NEWUSER)
            .map_err(because("cannot enter the user namespace"))?;
    }
    Ok(())
}
